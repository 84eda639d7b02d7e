"""What SRe2L's own trainer makes of a set: its code, unchanged, on our images and soft labels.

    git clone https://github.com/VILA-Lab/SRe2L
    python examples/score_by_sre2l.py SRe2L EXPORT --data data/prepared/digits --adamw-lr 0.01

``EXPORT`` is what ``teddy.sharing.fkd.export_fkd`` wrote. Arguments that are not ours go to the
trainer, ``SRe2L/validate/train_FKD.py``. That has the size, statistics and classes of ImageNet, a
GPU and an account at wandb written into it; not a line of it is changed, but while it runs

- its views, test images and normalisation have the size and statistics of the set;
- its ``--model`` is our ``--network``, for the set's classes and size; of grey images, which are
  read as RGB, it sees one channel;
- ``_MapDatasetFetcher`` reads a batch's file first, the edit of PyTorch that its README asks for;
- wandb keeps what is logged in a list;
- without a GPU, ``.cuda()`` leaves things where they are, and ``DataParallel`` wraps nothing.
"""

import argparse
import contextlib
import runpy
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from torchvision import transforms

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json
from teddy.data.datasets import read_dataset
from teddy.settings.configs import NetworkConfig
from teddy.sharing.bundles import write_png
from teddy.sharing.fkd import IMAGES, LABELS, RECORD, read_fkd
from teddy.teachers.networks import build


def main() -> None:
    """Train their student and print its accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False,
        epilog="All other arguments go to their train_FKD.py.",
    )  # fmt: skip
    parser.add_argument("checkout", type=absolute, help="of VILA-Lab/SRe2L")
    parser.add_argument("export", type=absolute, help="folder that export_fkd wrote")
    parser.add_argument("--data", type=absolute, required=True, help="prepared dataset to test on")
    parser.add_argument("--network", default="convnet3", help="student: convnet3, resnet18, …")
    parser.add_argument("--width", type=int, default=32, help="of its first layer")
    parser.add_argument("--norm", default="batch", help="norm of convnet3")
    parser.add_argument("--seed", type=int, default=0, help="of their student")
    args, theirs = parser.parse_known_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    script = args.checkout / "SRe2L" / "validate" / "train_FKD.py"
    if not script.is_file():
        raise TeddyError(f"{script}: not found; expected a checkout of VILA-Lab/SRe2L")
    export, record = args.export, read_json(args.export / RECORD)
    print(read_fkd(export, args.data).summary())
    config = NetworkConfig(arch=args.network, width=args.width, norm=args.norm)
    with tempfile.TemporaryDirectory() as temporary:
        count = write_test_images(args.data, Path(temporary) / "val")
        logged = run(script, record, config, [
            "--train-dir", f"{export / IMAGES}", "--val-dir", f"{temporary}/val",
            "--fkd-path", f"{export / LABELS}/",  # it joins names without a slash
            "--output-dir", f"{temporary}/save", "--model", "student", "--cos", "-j", "0",
            "--mix-type", "cutmix", "--batch-size", str(record["batch_size"]),
            "--epochs", str(record["epochs"]), "-T", str(record["temperature"]), *theirs,
        ])  # fmt: skip
    top1 = [metrics["val/top1"] for metrics in logged if "val/top1" in metrics]
    print(f"SRe2L's trainer: {top1[-1]:.2f} % on {count:,} images, best {max(top1):.2f} %")


def absolute(path: str) -> Path:
    """A path that stays the same in another working directory."""
    return Path(path).absolute()


def write_test_images(prepared: Path, out: Path) -> int:
    """Write the test images as a folder of classes, in the order of ours."""
    dataset = read_dataset(prepared)
    wide, count = max(3, len(str(dataset.num_classes - 1))), 0
    for images, labels in dataset.test.test_batches(256):
        for pixels, label in zip(images, labels.tolist(), strict=True):
            write_png(out / f"new{label:0{wide}d}" / f"{count:07d}.png", pixels)
            count += 1
    return count


def run(script: Path, record: Json, config: NetworkConfig, arguments: list[str]) -> list[Json]:
    """Run the trainer in this process; returns what it logged."""
    classes, (channels, *size) = len(record["classes"]), record["image_shape"]
    logged: list[Json] = []
    set_wandb(logged)
    set_fetcher()
    if not torch.cuda.is_available():
        set_no_gpu()
    mean, std = ((record[key] * 3)[:3] for key in ("mean", "std"))
    fix(transforms.Normalize, mean=mean, std=std)
    fix(transforms.Resize, size=size)
    fix(transforms.CenterCrop, size=size)

    def student(pretrained: bool = False) -> nn.Module:
        network = build(config, (channels, *size), classes, seed=torch.initial_seed())
        return nn.Sequential(FirstChannel(), network) if channels == 1 else network

    torchvision.models.student = student  # type: ignore[attr-defined]
    sys.path[:0] = [str(script.parent), str(script.parents[1])]
    from relabel import utils_fkd  # type: ignore[import-not-found]

    fix(utils_fkd.RandomResizedCropWithCoords, size=size)
    sys.argv = [script.name, *arguments]
    with contextlib.chdir(script.parent):
        runpy.run_path(str(script), run_name="__main__")
    return logged


def fix(cls: Any, **values: Any) -> None:
    """Have a class made with these arguments, whatever it is called with."""
    own = cls.__init__
    cls.__init__ = lambda self, *given, **named: own(self, **named | values)


class FirstChannel(nn.Module):
    """Of grey images that were read as RGB."""

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, 1, H, W)``."""
        return images[:, :1]


def set_wandb(logged: list[Json]) -> None:
    """Put a module in wandb's place that keeps what is logged."""
    module: Any = types.ModuleType("wandb")
    module.login = module.init = module.finish = lambda **own: None
    module.log = logged.append
    sys.modules["wandb"] = module


def set_fetcher() -> None:
    """Read the file of a batch before its images, and hand its mixing and labels out with them."""
    fetch = _MapDatasetFetcher.fetch

    def with_labels(self: Any, indices: list[int]) -> Any:
        if getattr(self.dataset, "mode", "") != "fkd_load":
            return fetch(self, indices)
        config = self.dataset.load_batch_config(indices[0])
        return fetch(self, indices), *config

    _MapDatasetFetcher.fetch = with_labels


def set_no_gpu() -> None:
    """Leave everything on the CPU."""
    torch.cuda.is_available = lambda: True
    torch.accelerator.is_available = lambda: False  # or loaders would pin memory for it
    Tensor.cuda = nn.Module.cuda = lambda self, *own, **more: self  # type: ignore[assignment, method-assign]
    nn.DataParallel = lambda module: module  # type: ignore[assignment, misc]


if __name__ == "__main__":
    try:
        main()
    except TeddyError as error:
        raise SystemExit(f"error: {error}") from None
