"""Results handed on with DVC: to another clone, and a set or a bundle to a folder of its own.

What is taken comes from a bare Git repository and a remote, as from a server: neither has a cache.
"""

import copy
import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkouts import DVC, edit_rows, outputs
from test_through_dvc import Clone

from teddy.core.files import digest
from teddy.settings.schema import read_yaml
from teddy.sharing.opening import load

pytestmark = pytest.mark.slow
PRIOR, RANDOM = "digits/main/ipc3/prior", "digits/main/ipc3/random"
BUNDLE, ARTIFACT, TARGET = "bundles/prior.zip", "digits-ipc3-prior", "table1@digits"
TARGETS = [stage for stage in DVC if "targets." in str(DVC[stage].get("foreach"))]
_POOL = {"data": "digits", "base": "digits/base", "curve": "digits/base", "kind": "prior"}
_SET = {"data": "digits", "pool": "digits/prior", "ipc": 3}
FEW: dict[str, object] = {
    "pools": {"digits/prior": _POOL},
    "sets": {RANDOM: _SET | {"method": "random"}, PRIOR: _SET | {"method": "teddy-prior"}},
    "evaluations": {}, "experts": {}, "step_teachers": {}, "learners": {},
    "targets": {name: {} for name in TARGETS} | {"table1": {"digits": {}}},
}  # fmt: skip
"""Rows of one chain and of one beside it."""


class Places:
    """Who shares, and where others take it from."""

    def __init__(self, base: Path) -> None:
        self.base, self.storage = base, base / "storage"
        self.git = f"file://{base}/public.git"
        self.origin = Clone(base / "origin", base / "site")

    def folder(self, path: Path) -> Clone:
        """Another folder that commands run in."""
        path.mkdir(parents=True, exist_ok=True)
        other = copy.copy(self.origin)
        other.folder = path
        other.environment = self.origin.environment | {"NO_PROXY": "*", "no_proxy": "*"}
        return other

    def clone(self, path: Path) -> Clone:
        """A clone of what is public, where its own code runs."""
        self.origin.run("git", "clone", "-q", self.git, str(path))
        other = self.folder(path)
        other.environment["PYTHONPATH"] = str(path / "src")
        return other


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A checkout that has made a table and a bundle, and has pushed both."""
    places = Places(tmp_path_factory.mktemp("sharing"))
    origin = places.origin
    edit_rows(origin.folder, FEW)
    (origin.folder / "examples/README.md").write_text("Git keeps no empty folder.\n")
    assert len(origin.repro(TARGET)) == 11, "from resolve to table1"
    origin.run("dvc", "remote", "add", "--default", "storage", str(places.storage))
    origin.run("git", "add", "-A")
    origin.run("git", "commit", "-qm", "table 1")

    origin.run("python", "-m", "teddy", "pack", f"data/distilled/{PRIOR}", "--out", BUNDLE)
    origin.run("dvc", "add", BUNDLE)
    with (origin.folder / "dvc.yaml").open("a", encoding="utf-8") as file:
        file.write(f"\nartifacts:\n  {ARTIFACT}:\n    path: {BUNDLE}\n    type: dataset\n")
    origin.run("dvc", "push", TARGET, "--with-deps")
    origin.run("dvc", "push", BUNDLE)
    origin.run("git", "add", "-A")
    origin.run("git", "commit", "-qm", "a bundle")
    origin.run("git", "tag", "-a", f"{ARTIFACT}@v1.0.0", "-m", "first")
    origin.run("git", "clone", "-q", "--bare", ".", "../public.git")
    return places


def test_another_clone_pulls_all_and_runs_nothing(places: Places, tmp_path: Path) -> None:
    clone, made = places.clone(tmp_path / "clone"), places.origin.folder
    assert not (clone.folder / "data").exists()
    clone.run("dvc", "pull", TARGET, "--with-deps")
    assert clone.repro(TARGET) == ["resolve"], "whose settings files stand in no remote"
    assert clone.repro(TARGET) == []
    assert "up to date" in clone.run("dvc", "status", TARGET)
    assert clone.run("git", "status", "--porcelain") == ""
    assert outputs(clone.folder) == outputs(made)
    for name in ("inputs", "metrics/tables", "data/distilled", "data/labels", "models"):
        assert digest(clone.folder / name) == digest(made / name)

    clone.run("git", "checkout", "-q", "HEAD~")  # which the bundle was packed at
    clone.run("python", "-m", "teddy", "pack", f"data/distilled/{PRIOR}", "--out", "again.zip")
    assert digest(clone.folder / "again.zip") == digest(made / BUNDLE)


def test_sets_and_bundles_are_fetched_into_a_folder(places: Places, tmp_path: Path) -> None:
    folder, made = places.folder(tmp_path / "folder"), places.origin.folder
    folder.run("dvc", "get", places.git, f"data/distilled/{PRIOR}", "-o", "set")
    folder.run("dvc", "get", places.git, f"data/distilled/{PRIOR}/0.safetensors", "-o", "one")
    folder.run("dvc", "get", places.git, "metrics/tables/digits/table1")
    folder.run("dvc", "get", places.git, BUNDLE)
    assert digest(folder.folder / "prior.zip") == digest(made / BUNDLE)
    assert digest(folder.folder / "table1") == digest(made / "metrics/tables/digits/table1")
    expected = load(made / "data/distilled" / PRIOR)
    for name in ("set", "one", "prior.zip"):
        assert torch.equal(load(folder.folder / name).images, expected.images)
    labels = load(folder.folder / "prior.zip").stored_labels(), expected.stored_labels()
    assert torch.equal(labels[0].epoch(7), labels[1].epoch(7))
    folder.run("python", "-m", "teddy", "verify", "prior.zip")


def test_an_import_knows_where_it_is_from(places: Places, tmp_path: Path) -> None:
    project = places.folder(tmp_path / "project")
    project.run("git", "init", "-q")
    project.run("dvc", "init", "-q")
    project.run("dvc", "import", places.git, BUNDLE)
    project.run("dvc", "import", places.git, f"data/distilled/{PRIOR}", "-o", "set")
    source = read_yaml(project.folder / "prior.zip.dvc")["deps"][0]["repo"]
    head = places.origin.run("git", "rev-parse", "HEAD").strip()
    assert source == {"url": places.git, "rev_lock": head}
    expected = digest(places.origin.folder / f"data/distilled/{PRIOR}")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "import")

    project.run("git", "clone", "-q", ".", str(tmp_path / "colleague"))
    colleague = places.folder(tmp_path / "colleague")
    colleague.run("dvc", "pull")  # from where it is from: this project has no remote
    assert digest(colleague.folder / "set") == expected
    assert len(load(colleague.folder / "prior.zip")) == 30


def test_an_artifact_is_fetched_by_name_and_version(places: Places, tmp_path: Path) -> None:
    folder = places.folder(tmp_path / "folder")
    folder.run("dvc", "artifacts", "get", places.git, ARTIFACT)
    get = ("dvc", "artifacts", "get", places.git, ARTIFACT, "--rev", "v1.0.0", "-o", "first.zip")
    folder.run(*get)
    for name in ("prior.zip", "first.zip"):
        assert digest(folder.folder / name) == digest(places.origin.folder / BUNDLE)


@pytest.fixture
def server(places: Places) -> Iterator[str]:
    """A web server of the remote's folder, which nobody can write to; gives its address."""
    handler = functools.partial(Quiet, directory=str(places.storage))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_is_a_remote_to_read(places: Places, tmp_path: Path, server: str) -> None:
    clone = places.clone(tmp_path / "clone")
    clone.run("dvc", "remote", "modify", "storage", "url", "/nowhere")
    clone.run("dvc", "remote", "add", "public", server)
    clone.run("git", "commit", "-qam", "where everybody can read")
    folder = places.folder(tmp_path / "folder")
    get = ("dvc", "get", f"file://{clone.folder}", BUNDLE, "--remote", "public")
    folder.run(*get)
    assert digest(folder.folder / "prior.zip") == digest(places.origin.folder / BUNDLE)


def test_an_experiment_is_pushed_and_applied_elsewhere(places: Places, tmp_path: Path) -> None:
    here, there = (places.clone(tmp_path / name) for name in ("here", "there"))
    here.run("dvc", "pull", TARGET, "--with-deps")
    ran = here.run("dvc", "exp", "run", "-n", "warm", "-S", "evaluate.temperature=5", TARGET)
    names = set(re.findall(r"Running stage '([^']+)'", ran))
    assert names == {"resolve", f"evaluate@{PRIOR}", f"evaluate@{RANDOM}", TARGET}
    here.run("dvc", "exp", "push", "origin", "warm")
    assert "warm" in there.run("dvc", "exp", "list", "origin")
    there.run("dvc", "exp", "pull", "origin", "warm")
    assert there.run("dvc", "exp", "branch", "warm", "warm")
    there.run("git", "checkout", "-q", "warm")
    there.run("dvc", "pull", TARGET, "--with-deps")
    assert there.repro(TARGET) == ["resolve"]
    assert outputs(there.folder) == outputs(here.folder) != outputs(places.origin.folder)
