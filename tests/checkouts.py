"""Small checkouts for tests, and ``dvc.yaml`` as DVC reads it: stages, rows and command lines."""

import copy
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from teddy.core.files import digest
from teddy.settings.schema import read_yaml
from teddy.stages.resolve import write_inputs
from tools.by_hand import lookup, variables

ROOT = Path(__file__).parents[1]
DVC: dict[str, Any] = dict(read_yaml(ROOT / "dvc.yaml")["stages"])
"""All stages but ``resolve``, which makes the inputs of the others."""
RESOLVE: dict[str, Any] = DVC.pop("resolve")
METHODS, DIGITS = "experiments/methods.yaml", "experiments/digits.yaml"
COMPUTING = (
    "prepare", "train_teacher", "build_pool", "train_experts", "synthesize", "relabel", "evaluate",
    "reevaluate", "train_step_teachers", "continual",
)  # fmt: skip
"""Stages of the chain, in order."""


# ----------------------------------------------------------------------------- what a stage says


def body(stage: str) -> dict[str, Any]:
    """What DVC runs for every row of a stage, or once."""
    found: dict[str, Any] = DVC[stage].get("do", DVC[stage])
    return found


def module(stage: str) -> str:
    """Module that a stage runs; several tables and figures share one."""
    found = re.search(r"-m teddy (\w+)(?=\s)", body(stage)["cmd"])
    assert found, stage
    return found[1]


def outs(stage: str) -> list[str]:
    """Paths that a stage writes, with placeholders, but for figures as SVG beside those as PNG."""
    return [path for path in all_outs(stage) if not path.endswith(".svg")]


def all_outs(stage: str) -> list[str]:
    """Paths that a stage writes, with placeholders."""
    return [next(iter(out)) if isinstance(out, dict) else out for out in body(stage)["outs"]]


def own_inputs(stage: str) -> str:
    """The settings file of a stage, with placeholders."""
    (path,) = [dep for dep in body(stage)["deps"] if dep.startswith("inputs")]
    assert isinstance(path, str)
    return path


def option(stage: str, path: str) -> str:
    """Option that a path of ``dvc.yaml`` is given by."""
    (found,) = re.findall(rf"(--[a-z]+)\s+{re.escape(path)}(?!\S)", body(stage)["cmd"])
    return str(found)


# ------------------------------------------------------------------------------ what a checkout has


def listed(files: Sequence[str]) -> str:
    """The repository's ``dvc.yaml`` with other experiment files switched on."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    lines = "".join(f"  - {file}\n" for file in files)
    return re.sub(r"(?m)^vars:\n(?:  - .*\n)+", f"vars:\n{lines}", text)


def instances(known: Any, stage: str) -> Iterator[dict[str, str]]:
    """What DVC puts for each placeholder, for every instance of a stage.

    Args:
        known: of :func:`tools.by_hand.variables`.
        stage: name.
    """
    if "foreach" not in DVC[stage]:
        names = set(re.findall(r"(?<!\\)\$\{([\w.]+)\}", str(body(stage))))
        yield {f"${{{name}}}": str(lookup(known, name)) for name in names}
        return
    for key, row in lookup(known, DVC[stage]["foreach"][2:-1]).items():
        yield {"${key}": key, **{f"${{item.{name}}}": str(value) for name, value in row.items()}}


def filled(text: str, fields: Mapping[str, str]) -> str:
    """Text of ``dvc.yaml`` with its placeholders replaced."""
    for pattern, value in fields.items():
        text = text.replace(pattern, value)
    return text


def commands(root: Path, stage: str, row: str = "") -> Iterator[list[str]]:
    """Command lines of a stage for every row, or for one, as ``dvc.yaml`` has them.

    What comes before the name of the module, which is their first word, is left out.
    """
    for fields in instances(variables(root), stage):
        if row in ("", fields.get("${key}")):
            yield filled(body(stage)["cmd"], fields).split("-m teddy")[1].split()


def command(root: Path, stage: str, row: str, **changes: Any) -> list[str]:
    """Command line of a stage for one row, with some options given other values."""
    (arguments,) = commands(root, stage, row)
    for name, value in changes.items():
        arguments[arguments.index(f"--{name}") + 1] = str(value)
    return arguments


def outputs(folder: Path) -> dict[str, str]:
    """Checksum of every file that stages wrote; what is measured differs between runs."""
    return {
        file.relative_to(folder).as_posix(): digest(file)
        for name in ("data", "models", "metrics", "plots")
        for file in sorted((folder / name).rglob("*"))
        if file.is_file()
        and not {"costs", "fig3d"} & {*file.relative_to(folder).parts, file.stem}
        and file.stem not in ("fig1_seconds", "report")
    }


# ------------------------------------------------------------------------------------ a tiny one

PRIOR = "digits/main/ipc3/prior"
_SMALL = {
    "train_teacher.network.width": 4,
    "train_teacher.epochs": 6,
    "pool.prior": {"first": 3, "last": 6, "step": 1.5},
    "pool.post.size": 3,
    "pool.post.max_epochs": 1,
    "synthesize.iterations": 120,
    "synthesize.indices_per_batch": 2,
    "synthesize.draw": 2,
    "dm.network.width": 4,
    "dm.iterations": 4,
    "relabel.epochs": 8,
    "evaluate.network.width": 4,
    "evaluate.seeds": [0, 1],
    "evaluate.eval_epochs": 4,
    "recipes.dm.relabel.epochs": 8,
    "recipes.dm.evaluate.eval_epochs": 4,
}
_ROWS = """
on: {digits: true}

prepared:
  digits: {dataset: digits}

bases:
  digits/base: {data: digits}

pools:
  digits/converged: &of_base {data: digits, base: digits/base, curve: digits/base, kind: converged}
  digits/post: {<<: *of_base, kind: post}
  digits/prior: {<<: *of_base, kind: prior}

experts:
  digits/experts:
    {data: digits, count: 2, epochs: 2, batch_size: 64,
     network: {arch: convnet3, width: 4, norm: instance}}

sets:
  digits/main/ipc3/random: &random {data: digits, pool: digits/prior, method: random, ipc: 3}
  digits/main/ipc3/sre2l: {<<: *random, pool: digits/converged, method: sre2l, draw: 1}
  digits/main/ipc3/post: {<<: *random, pool: digits/post, method: teddy-post}
  digits/main/ipc3/prior: &prior {<<: *random, method: teddy-prior, syntheses: 2}
  digits/fig3a/draw1: {<<: *prior, draw: 1}
  digits/table5/dm:
    {<<: *random, method: dm, initialise: real, recipe: dm}
  digits/table5/mtt:
    {<<: *random, method: mtt, pool: digits/experts, iterations: 3, student_steps: 2,
     expert_epochs: 1, max_start: 2, relabel: {augmentation: dsa, cutmix: false, store: false}}

evaluations:
  digits/fig3b/members1: &again
    {set: digits/main/ipc3/prior, data: digits, pool: digits/prior, labels: [soft], members: 1}
  digits/table2/resnet18:
    {<<: *again, members: 0, relabel: {epochs: 2},
     evaluate: {network: {arch: resnet18}, seeds: [0]}}

step_teachers:
  digits/by-step: {data: digits}

learners:
  digits/fig3e/all: &learner
    {set: digits/main/ipc3/prior, data: digits, pool: digits/prior, teachers: digits/prior,
     labels: [soft], relabel: {epochs: 2}, evaluate: {seeds: [0]}}
  digits/fig3e/strict: {<<: *learner, teachers: digits/by-step}
  digits/fig3e/dm-strict:
    {<<: *learner, set: digits/table5/dm, teachers: digits/by-step, labels: [hard, soft]}

targets:
  table1: {digits: {}}
  table2: {digits: {}}
  table3: {}
  table4: {}
  table5: {digits: {}}
  fig2c: {}
  fig3a: {digits: {beside: [main/ipc3/prior], after: main/ipc3/prior.json}}
  fig3b: {digits: {beside: [main/ipc3/prior], after: main/ipc3/prior.json}}
  fig3c: {}
  fig3d:
    digits:
      {beside: [main/ipc3/sre2l, main/ipc3/prior], data: digits, converged: digits/converged,
       prior: digits/prior}
  fig3e: {digits: {}}
  fig4-6-7: {digits: {beside: [main/ipc3], after: main/ipc3}}
  ablations: {}
  precision: {}
"""


def tiny_checkout(folder: Path, **changes: Any) -> Path:
    """The repository's settings, shrunk until the whole method takes seconds, and few rows.

    Args:
        folder: to write to.
        changes: settings of the dataset digits, with ``__`` for the dot between keys.
    """
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for key, value in {**_SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        assign(params["datasets"]["digits"], key, copy.deepcopy(value))
    params["syntheses"] = 1  # but of the row that says 2
    params["continual"] = {"steps": 2, "orders": [0, 1]}
    params["fig1"] |= {"ipc": 2, "inner_steps": [1, 2], "repeats": 1}
    params["fig5"] |= {
        "width": 4, "inner_steps": 2, "real_per_class": 2, "iterations": 2, "measured_inits": 1,
        "seeds": [0, 1], "law_lrs": [0.1, 0.05], "law_steps": [2],
    }  # fmt: skip
    for name in ("params", "experiments", "examples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    yaml.dump(params, folder / "params.yaml")
    shutil.copy(ROOT / METHODS, folder / METHODS)
    (folder / DIGITS).write_text(_ROWS.lstrip(), encoding="utf-8")
    (folder / "dvc.yaml").write_text(listed([METHODS, DIGITS]), encoding="utf-8")
    write_inputs(folder, folder / "inputs")
    return folder


def edit_rows(folder: Path, edits: Mapping[str, Any], file: str = DIGITS) -> None:
    """Change rows of a checkout, by their path with colons: ``sets:digits/a/b:ipc``."""
    yaml = YAML()
    raw = yaml.load(folder / file)
    for place, value in edits.items():
        assign(raw, place, value, ":")
    yaml.dump(raw, folder / file)


def assign(section: Any, key: str, value: Any, separator: str = ".") -> None:
    """Set what stands at a path of keys."""
    *parents, last = key.split(separator)
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value
