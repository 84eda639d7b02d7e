r"""Scores of a set by DD-Ranking: its networks, schedules and numbers, on our images and labels.

    pip install --no-deps ddranking && pip install kornia timm pandas tqdm
    python examples/score_by_dd_ranking.py data/distilled/digits/main/ipc10/plus \
        --data data/prepared/digits --pool models/digits/prior --labels hard soft

(``--no-deps``, as release 0.2.0 asks for NumPy 1, without need.) Its two numbers, percent points:

- *hard label recovery*: full data less the set, both with hard labels; less is better;
- *improvement over random*: the set less random real images, labelled alike; more is better.

Its label-robust score follows from them; by its README from accuracies of 0 to 1, by release 0.2.0
from percent, which leaves the range of 0 to 1. We print that of the README.

DD-Ranking knows a few datasets by name, and downloads them. Here it gets our prepared ones instead,
normalised as ours are; grey images become three equal channels. With soft labels every image has
one, of the pool. Two things of release 0.2.0 are replaced, since it fails in them: the table of
results of hard labels (its columns differ in length), and the drawing of random images for given
soft labels (``get_random_data_tensors`` gets an argument too few; there is no ``teacher_model``).
"""

import argparse
import contextlib
import io
import math
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import teddy
from teddy.core.errors import TeddyError
from teddy.core.runtime import pick_device
from teddy.data.datasets import ImageDataset, read_dataset
from teddy.data.images import Normalisation
from teddy.objectives import ensemble_logits
from teddy.sharing.training_set import TrainingSet
from teddy.teachers.pools import open_pool

DSA = {
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5,
    "scale": 1.2, "crop": 0.125, "cutout": 0.5,
}  # fmt: skip
"""Of its demos."""
NAME = "CIFAR10"  # whose schedule the network on the full data has


def main() -> None:
    """Print its numbers for every kind of labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path, help="what teddy.load opens")
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset")
    parser.add_argument("--pool", type=Path, help="teachers, for soft labels")
    parser.add_argument("--labels", nargs="+", choices=["hard", "soft"], default=["hard"])
    parser.add_argument("--model", default="ConvNet-3", help="one of its networks")
    parser.add_argument("--epochs", type=int, default=300, help="of every network; its demos: 1000")
    parser.add_argument("--runs", type=int, default=5, help="that are averaged")
    parser.add_argument("--temperature", type=float, default=1.0, help="of soft labels")
    parser.add_argument("--flip", type=float, default=0.5, help="share of mirrored images")
    parser.add_argument("--test-images", type=int, help="use so many (default: all)")
    parser.add_argument(
        "--full-accuracy", type=float, help="on the full data, percent (default: train on it)"
    )
    args = parser.parse_args()
    if min(args.epochs, args.runs) < 1 or args.epochs < 20:
        raise TeddyError("--epochs must be 20 or more, which it tests after, and --runs 1 or more")
    if "soft" in args.labels and args.pool is None:
        raise TeddyError("--labels soft needs --pool, the teachers of random images' labels")
    warnings.simplefilter("ignore")
    data, dataset = teddy.load(args.set), read_dataset(args.data)
    if data.class_names != dataset.class_names:
        raise TeddyError(f"{args.data}: has other classes than {args.set}")
    if data.labels.bincount(minlength=data.num_classes).unique().numel() != 1:
        raise TeddyError(f"{args.set}: its classes must have equally many images for DD-Ranking")
    for kind in args.labels:
        print_scores(kind, args, *score(kind, args, data, dataset))


def score(
    kind: str, args: argparse.Namespace, data: TrainingSet, dataset: ImageDataset
) -> tuple[dict[str, float], list[str]]:
    """DD-Ranking's numbers, and the accuracies it printed on its way."""
    try:
        from ddranking.metrics import hard_label, soft_label
        from ddranking.utils import REAL_DATA_ACC_CACHE
    except ImportError as error:
        raise TeddyError(
            f"{error}; run: pip install --no-deps ddranking && pip install kornia timm pandas tqdm"
        ) from None
    if args.full_accuracy is not None:
        REAL_DATA_ACC_CACHE[f"{NAME}-{args.model}"] = args.full_accuracy
    device, norm = pick_device(), data.normalisation
    train = Real(as_rgb(every(dataset.train), norm), dataset.train.labels.tolist())
    count = args.test_images or len(dataset.test)
    pixels, labels = every(dataset.test)[:count], dataset.test.labels[:count].tolist()
    test = Real(as_rgb(pixels, norm), labels)
    size = tuple(data.images.shape[2:])
    classes = {label: label for label in range(data.num_classes)}
    module = {"hard": hard_label, "soft": soft_label}[kind]
    module.get_dataset = lambda *given: (
        3, size, None, None, data.num_classes, train, test, test, classes, classes,
    )  # fmt: skip
    module.save_results = lambda *given: None
    order = data.labels.argsort(stable=True)  # which it takes for granted with soft labels
    images = as_rgb(data.images[order], norm)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "dataset": NAME, "ipc": data.ipc, "model_name": args.model, "num_eval": args.runs,
            "data_aug_func": "dsa", "aug_params": DSA | {"flip": args.flip}, "im_size": size,
            "step_size": max(1, args.epochs // 2), "num_epochs": args.epochs, "num_workers": 0,
            "save_path": f"{folder}/scores.csv", "device": str(device),
            "random_data_format": "tensor", "random_data_path": folder,
            "eval_full_data": args.full_accuracy is None,
        }  # fmt: skip
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            if kind == "hard":
                metric = hard_label.LabelRobustScoreHard(**options)
                found = metric.compute_metrics(image_tensor=images, hard_labels=data.labels[order])
            else:
                label = pool_labels(args.pool, data)
                metric = soft_label.LabelRobustScoreSoft(
                    **options, soft_label_mode="S", teacher_model_names=[],
                    loss_fn_kwargs={"temperature": args.temperature, "scale_loss": False},
                )  # fmt: skip
                metric._get_random_data_helper = lambda eval_iter: draw(train, data.ipc, label)
                found = metric.compute_metrics(image_tensor=images, soft_labels=label(images))
    return found, [line for line in printed.getvalue().splitlines() if " label acc: " in line]


def print_scores(
    kind: str, args: argparse.Namespace, found: dict[str, float], lines: list[str]
) -> None:
    """Print accuracies, its two numbers and the score that its README defines."""
    print(f"{kind} labels, {args.model}, {args.epochs} epochs, {args.runs} runs")
    print("\n".join(f"  {line}" for line in lines))
    recovery, gain = found["hard_label_recovery_mean"], found["improvement_over_random_mean"]
    alpha = (gain - recovery) / 200
    robust = (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
    print(f"  hard label recovery     {recovery:6.2f} ± {found['hard_label_recovery_std']:.2f}")
    print(f"  improvement over random {gain:6.2f} ± {found['improvement_over_random_std']:.2f}")
    print(f"  label-robust score      {robust:6.3f}")


class Real(Dataset[tuple[Tensor, int]]):
    """Real images as torchvision's datasets have them."""

    def __init__(self, images: Tensor, targets: list[int]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def every(images: Any) -> Tensor:
    """All images of a split, uint8 ``(N, C, H, W)``."""
    return torch.cat(list(images.whole_batches(torch.arange(len(images)).split(256))))


def as_rgb(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalised images of three channels."""
    return normalisation.apply(images).expand(-1, 3, -1, -1).contiguous()


def pool_labels(folder: Path, data: TrainingSet) -> Any:
    """What a pool says of normalised RGB images: mean logits ``(N, K)``."""
    pool, channels = open_pool(folder), data.images.shape[1]
    pool.check(data.images.shape[1:], data.num_classes, data.path)
    members = [pool.member(index, torch.device("cpu")) for index in range(len(pool))]

    def label(images: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [torch.stack([m(p[:, :channels]) for m in members]) for p in images.split(256)]
        return torch.cat([ensemble_logits(part, "logits") for part in parts])

    return label


def draw(train: Real, ipc: int, label: Any) -> tuple[None, Tensor, Tensor]:
    """Random real images by class, and the pool's labels of them."""
    targets, chosen = torch.tensor(train.targets), list[int]()
    for one in targets.unique():
        chosen += random.sample(torch.nonzero(targets == one)[:, 0].tolist(), ipc)
    return None, train.images[chosen], label(train.images[chosen])


if __name__ == "__main__":
    try:
        main()
    except TeddyError as error:
        raise SystemExit(f"error: {error}") from None
