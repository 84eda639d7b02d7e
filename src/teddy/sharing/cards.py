"""The data card of a bundle: what it is, from what, how good, and under which terms."""

import statistics
from collections.abc import Sequence

from teddy.core.files import Json
from teddy.core.tables import Column, Table, percent
from teddy.settings.rows import KINDS

_TERMS = {
    "digits": "UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), as "
    "scikit-learn ships it; UCI publishes it under CC BY 4.0.",
    "cifar10": "CIFAR-10 (Krizhevsky, 2009). Its page prints no licence and asks to cite the "
    "report *Learning Multiple Layers of Features from Tiny Images*.",
    "cifar100": "CIFAR-100 (Krizhevsky, 2009). Its page prints no licence and asks to cite the "
    "report *Learning Multiple Layers of Features from Tiny Images*.",
    "mnist": "MNIST (LeCun, Cortes and Burges). Its page prints no licence.",
    "fashion-mnist": "Fashion-MNIST (Zalando SE), published under the MIT licence.",
    "tiny-imagenet": "Tiny-ImageNet, a part of ImageNet, whose terms allow non-commercial research "
    "and education; the photographs belong to their owners.",
}
"""Terms of the sources that are known, as their pages print them."""
_UNKNOWN = "The terms of the images are those of whoever published them; nothing here changes them."


def card(record: Json, numbers: Json) -> str:
    """The text of ``README.md``.

    Args:
        record: as ``recipe.yaml`` has it.
        numbers: as ``numbers.json`` has them.
    """
    prepare, relabel = record["source"]["prepare"], record["recipe"]["relabel"]
    students, network = numbers["students"], record["recipe"]["evaluate"]["network"]["arch"]
    classes = record["classes"]
    machine = students.get("machine") or "a machine that was not recorded"
    named = ", ".join(classes[:20]) + (
        f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    )
    parts = [
        f"# {numbers['dataset']}, distilled to {numbers['ipc']} per class by {numbers['method']}",
        f"{_images(record, numbers)} of {len(classes)} classes ({named}), and soft labels of "
        f"{_labels(relabel)}. A network trained on these alone stands in "
        "for one trained on the whole dataset.",
        _table(numbers).markdown().strip(),
        f"Accuracy of {network} students on {students['images_held_out']:,} real "
        f"{students['split']} images after the last of {students['epochs']} epochs. "
        f"{_beside(numbers)}Measured on {machine}{_reduced(numbers)}.",
        "## Use",
        "```python\nimport teddy\n\ndata = teddy.load(\"this folder\")\n"
        "network = teddy.fit(data.network(), data)  # the recipe's network; any other will do\n"
        "for epoch in data.loader(batch_size=50):  # or a training loop of your own\n"
        "    for inputs, targets in epoch: ...\n```",
        "Images are PNGs in `images/`, in the order of `images.csv`, and can be used without this "
        "package; classes and normalisation stand in `recipe.yaml`. `teddy verify` compares all "
        "checksums and trains a student again; `sha256sum -c SHA256SUMS` the former alone.",
        "## How it was made",
        _how(record, numbers),
        "## From what",
        f"{record['source']['title']}: {_TERMS.get(prepare['source'], _UNKNOWN)}",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _labels(relabel: Json) -> str:
    """Which views have soft labels, and how these are kept."""
    every, own = relabel["epochs"], relabel["label_epochs"]
    text = f"every augmented view in {own or every} epochs"
    text += f", which come again until {every} are over" if own and own < every else ""
    text += f", rounded to {relabel['label_bits']} bits" if relabel["label_bits"] < 16 else ""
    k = relabel["label_top_k"]
    return text + (f", of the {k} largest classes of each" if k else "")


def _beside(numbers: Json) -> str:
    if numbers["random"]:
        return (
            "*Random real images* have the same number of images, labels by the same teachers, and "
            "the same recipe. "
        )
    if numbers["students"]["method"] == "random":
        return ""
    return "Random real images were not evaluated beside it. "


def _reduced(numbers: Json) -> str:
    more = ", with all labels of the pipeline, of which fewer are kept here"
    return more if numbers.get("labels_reduced") else ""


def _images(record: Json, numbers: Json) -> str:
    size = numbers["students"]["bytes"]["images"]
    channels, side = len(record["mean"]), record["source"]["prepare"]["image_size"]
    return f"{size // (channels * side * side):,} images of {side}×{side} pixels"


def _table(numbers: Json) -> Table:
    rows = [(numbers["method"], numbers["students"])]
    if numbers["random"]:
        rows.append(("Random real images", numbers["random"]))
    kinds = [kind for kind in KINDS if kind in numbers["students"]["labels"]]
    columns = (
        Column("images", text=True), *(Column(f"{kind} labels") for kind in kinds), Column("n"),
    )  # fmt: skip
    cells = tuple(
        (title, *(_cell(record["labels"].get(kind)) for kind in kinds), _n(record))
        for title, record in rows
    )
    note = (
        "Top-1, percent: mean ± sample standard deviation over syntheses of their students' means "
        "(over students where there is one synthesis). n: syntheses × students of each."
    )
    return Table("Numbers", columns, cells, (note,))


def _by_synthesis(students: Sequence[Json]) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for student in students:
        found.setdefault(student.get("synthesis", 0), []).append(student["top1_last"])
    return list(found.values())


def _cell(students: Sequence[Json] | None) -> str | None:
    if not students:
        return None
    groups = _by_synthesis(students)
    values = [statistics.fmean(own) for own in groups] if len(groups) > 1 else groups[0]
    mean = statistics.fmean(value for own in groups for value in own)
    return percent(mean, statistics.stdev(values) if len(values) > 1 else None)


def _n(record: Json) -> str:
    groups = _by_synthesis(next(iter(record["labels"].values())))
    return f"{len(groups)} × {len(groups[0])}"


def _how(record: Json, numbers: Json) -> str:
    teachers, seconds = record["teachers"], numbers["seconds"]
    lines = [
        f"- Row `{record['name']}`, synthesis {record['synthesis']}, of the pipeline at commit "
        f"{numbers['commit'] or 'unknown'}.",
        f"- {len(teachers)} teacher{'s' * (len(teachers) != 1)} label; their checksums stand in "
        "`recipe.yaml`.",
        f"- Soft labels: {numbers['label_bytes']:,} bytes; images: "
        f"{numbers['students']['bytes']['images']:,} bytes of pixels.",
    ]
    if seconds:
        total = seconds["teachers"] + seconds["images"] + seconds["labels"]
        lines.append(
            f"- Built in {total:.0f} s on {numbers['build_hardware']['cpu']}: teachers "
            f"{seconds['teachers']:.0f} s, images {seconds['images']:.1f} s, labels "
            f"{seconds['labels']:.1f} s."
        )
    else:
        lines.append("- How long it took to build was not recorded.")
    return "\n".join(lines)
