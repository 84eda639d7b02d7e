"""DVC itself on a tiny checkout: what runs, what runs again, and what it writes into files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkouts import COMPUTING, DVC, PRIOR, ROOT, instances, listed, tiny_checkout

from teddy.core.files import read_json
from tools.by_hand import variables

DM, MTT = "digits/table5/dm", "digits/table5/mtt"
RANDOM = "digits/main/ipc3/random"


class Clone:
    """A tiny checkout under Git and DVC."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder = tiny_checkout(folder)
        shutil.rmtree(folder / "inputs")
        for name in (".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        shutil.copy(ROOT / "params" / "cifar10-cpu.yaml", folder / "params")
        for name in ("src", "metrics/reference"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "src"),
            "DVC_SITE_CACHE_DIR": str(site),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        for who in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{who}_NAME": "test", f"GIT_{who}_EMAIL": "test"}
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")

    def run(self, *command: str) -> str:
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        return result.stdout

    def repro(self, *arguments: str) -> list[str]:
        """Stages that ran, as DVC names them."""
        return re.findall(r"Running stage '([^']+)'", self.run("dvc", "repro", *arguments))

    def stale(self) -> set[str]:
        """Stages that would run for their own sake, once settings are resolved anew."""
        assert self.repro("resolve") == ["resolve"]
        return set(json.loads(self.run("dvc", "status", "--json")))

    def edit(self, file: str, before: str, after: str) -> None:
        text = (self.folder / file).read_text(encoding="utf-8")
        assert before in text
        (self.folder / file).write_text(text.replace(before, after, 1), encoding="utf-8")

    def texts(self) -> dict[str, str]:
        """What people write, by name."""
        paths = [
            path for pattern in ("*.yaml", "params/*", "experiments/*")
            for path in self.folder.glob(pattern)
        ]  # fmt: skip
        return {path.name: path.read_text(encoding="utf-8") for path in paths}


def stages_of(names: set[str] | list[str]) -> set[str]:
    return {name.split("@")[0] for name in names}


@pytest.mark.slow
def test_dvc_reads_all_experiment_files_as_we_do(tmp_path: Path) -> None:
    """Names of all stages and rows, the command line of ``resolve``, and no output in another."""
    clone = Clone(tmp_path / "clone", tmp_path / "site")
    for name in ("experiments", "params"):
        shutil.copytree(ROOT / name, clone.folder / name, dirs_exist_ok=True)
    files = sorted(f"experiments/{path.name}" for path in (ROOT / "experiments").glob("*.yaml"))
    (clone.folder / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    known = variables(clone.folder)
    expected = {"resolve"}
    for stage in DVC:
        for fields in instances(known, stage):
            expected.add(f"{stage}@{fields['${key}']}" if "${key}" in fields else stage)
    assert set(clone.run("dvc", "stage", "list", "--name-only").split()) == expected
    (command,) = re.findall(r"> (python .*)", clone.run("dvc", "repro", "--dry", "resolve"))
    assert command.startswith("python -m teddy resolve --out inputs --")
    assert set(command.split()[6:]) == {f"--{Path(file).stem}" for file in files}


@pytest.mark.slow
def test_dvc_runs_once_and_reruns_only_what_changed(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", tmp_path / "site")
    known = variables(clone.folder)
    assert len(clone.repro()) == 1 + sum(len(list(instances(known, stage))) for stage in DVC)
    start = time.monotonic()
    assert clone.repro() == [], "not even resolve, of which nothing changed"
    assert time.monotonic() - start < 30
    assert "metrics/summary.json" in clone.run("dvc", "metrics", "show", "--json")

    clone.edit("params.yaml", "temperature: 20", "temperature: 10")
    status = json.loads(clone.run("dvc", "status", "--json"))
    assert status == {"resolve": [{"changed deps": {"params.yaml": "modified"}}]}
    again = clone.repro()
    assert stages_of(again) >= {
        "resolve",
        "evaluate",
        "reevaluate",
        "continual",
        "table1",
        "report",
    }
    assert f"evaluate@{DM}" not in again, "its students have hard labels alone"
    unchanged = {*COMPUTING, "measure_costs", "overview"} - {"evaluate", "reevaluate", "continual"}
    assert not unchanged & stages_of(again)
    settings = read_json(clone.folder / f"inputs/evaluate/{PRIOR}.json")
    assert settings["config"]["temperature"] == 10
    assert clone.repro() == []

    clone.edit("params.yaml", "      lr: 10\n", "      lr: 5\n")
    assert clone.stale() == {f"synthesize@{DM}"}
    clone.edit("src/teddy/students/evaluation.py", "import ", "import  ")
    assert stages_of(clone.stale()) == {"synthesize", "evaluate", "reevaluate", "continual"}
    clone.edit("src/teddy/synthesis/teddy.py", "import ", "import  ")
    made_by_it = {name for name in known["sets"] if name not in (DM, MTT, RANDOM)}
    assert {name for name in clone.stale() if name.startswith("synthesize@")} == {
        f"synthesize@{name}" for name in (*made_by_it, DM)
    }
    clone.edit("params.yaml", "seed: 0", "seed: 1")
    assert stages_of(clone.stale()) >= set(COMPUTING)


@pytest.mark.slow
def test_dvc_experiments_change_one_line_of_one_file(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", tmp_path / "site")
    clone.run("dvc", "repro", "resolve")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "start")
    before = clone.texts()

    def changed() -> dict[str, list[str]]:
        after = {name: text.splitlines() for name, text in clone.texts().items()}
        return {
            name: [
                new for old, new in zip(text.splitlines(), after[name], strict=True) if old != new
            ]
            for name, text in before.items()
            if after[name] != text.splitlines()
        }

    setting = "params/cifar10-cpu.yaml:synthesize.lr=0.125"
    clone.run("dvc", "exp", "run", "-S", setting, "resolve")
    assert changed() == {"cifar10-cpu.yaml": ["  lr: 0.125"]}
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "exp", "run", "-S", "datasets.digits.synthesize.lr=0.2", "resolve")
    assert changed() == {"params.yaml": ["      lr: 0.2"]}
    found = json.loads(clone.run("dvc", "params", "diff", "--json"))
    assert found == {
        "params.yaml": {"datasets.digits.synthesize.lr": {"old": 0.1, "new": 0.2, "diff": 0.1}}
    }
