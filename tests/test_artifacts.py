"""Files: whole or not at all, equal bytes for equal content, one clear line for foreign ones."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from teddy.core.artifacts import WorkDir, read_record, read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import atomic_path, check_writable, digest, read_json, write_json
from teddy.settings.schema import read_yaml

KIND = "teddy.test.v1"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.floats(-1, 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def tensors() -> dict[str, torch.Tensor]:
    """One tensor of each type that is stored."""
    draw = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return {
        "float32": draw,
        "float16": draw.half(),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "int64": torch.tensor([2**40, -1]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.0),
    }


# ------------------------------------------------------------------------------------ atomic files


def test_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_failed_write_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    expected = TeddyError if error is OSError else error
    with pytest.raises(expected), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error("no")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_first_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_says(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_tensors(tmp_path / "t", tensors(), kind=KIND, record={})
    finally:
        os.umask(before)
    for path in (tmp_path / "a.json", tmp_path / "t"):
        assert path.stat().st_mode & 0o777 == mode


@pytest.fixture(params=["a folder", "a named pipe", "a socket", "a device"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A path that is no file, and what a message says of it."""
    path, words = tmp_path / "odd", str(request.param)
    if words == "a folder":
        path.mkdir()
    elif words == "a named pipe":
        os.mkfifo(path)
    elif words == "a device":
        path.symlink_to("/dev/zero")
    else:
        with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
            server.bind("odd")  # the whole path may be too long
    return path, words


def test_what_is_no_file_is_neither_read_nor_replaced(odd: tuple[Path, str]) -> None:
    """A pipe would wait for its other end, and a device never ends."""
    path, words = odd
    attempts: list[Callable[[], object]] = [
        lambda: read_json(path),
        lambda: read_yaml(path),
        lambda: read_record(path, kind=KIND),
        lambda: check_writable(path),
    ]
    if words != "a folder":
        attempts.append(lambda: digest(path))
    for attempt in attempts:
        with pytest.raises(TeddyError, match=words) as caught:
            attempt()
        assert str(caught.value).startswith(f"{path}: ")
    assert [file.name for file in path.parent.iterdir()] == ["odd"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 100_000, "nested too deeply"), ("1" * 5000, "expected JSON"), ("\0", "expected JSON")],
)
def test_odd_json_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TeddyError, match=rf"a\.json: .*{words}") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_target_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    path = tmp_path / "a_file" / "out.json"
    attempts: list[Callable[[], None]] = [
        lambda: write_json(path, {}),
        lambda: write_tensors(path, tensors(), kind=KIND, record={}),
        lambda: check_writable(tmp_path / "fine.json", path),
    ]
    for attempt in attempts:
        with pytest.raises(TeddyError, match=r"out\.json: cannot write here") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    with pytest.raises(TeddyError, match=r"out\.json: cannot write here"):
        write_json(tmp_path / "out.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_checking_writes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("old")
    check_writable(old, tmp_path / "sub" / "new.json")
    assert old.read_text() == "old"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [old]


# ------------------------------------------------------------------------------------------ JSON


@given(record=st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_json_is_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "json" / "record.json"
    write_json(path, record)
    assert read_json(path) == record
    first = path.read_bytes()
    write_json(path, dict(reversed(record.items())))
    assert path.read_bytes() == first, "the order of keys does not matter"
    assert first.endswith(b"\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "expected JSON"), ("[1]", "expected a JSON object, got list"), ("", "expected JSON")],
)
def test_file_that_is_not_a_json_object_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(TeddyError, match=rf"record\.json: {expected}"):
        read_json(path)


def test_binary_file_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TeddyError, match=r"record\.json: expected JSON"):
        read_json(path)


def test_missing_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match=r"gone\.json: cannot read: No such file"):
        read_json(tmp_path / "gone.json")


# --------------------------------------------------------------------------------------- tensors


def test_tensors_are_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, tensors(), kind=KIND, record={"b": [1, 2.5], "a": "é"})
    got, record = read_tensors(path, kind=KIND)
    assert record == {"b": [1, 2.5], "a": "é"} == read_record(path, kind=KIND)
    assert got.keys() == tensors().keys()
    for name, value in tensors().items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value)


def test_strided_tensors_are_written_by_value(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    odd = {"channels_last": base.to(memory_format=torch.channels_last), "slice": base[:, 1]}
    write_tensors(
        tmp_path / "t", {**odd, "grad": base.clone().requires_grad_()}, kind=KIND, record={}
    )
    got, _ = read_tensors(tmp_path / "t", kind=KIND)
    assert torch.equal(got["channels_last"], base)
    assert torch.equal(got["slice"], base[:, 1])
    assert not got["grad"].requires_grad


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    record = {"one": 1, "two": {"x": 1, "y": 2}}
    write_tensors(tmp_path / "a", tensors(), kind=KIND, record=record)
    shuffled = {name: tensors()[name] for name in reversed(list(tensors()))}
    other = {"two": {"y": 2, "x": 1}, "one": 1}
    write_tensors(tmp_path / "b", shuffled, kind=KIND, record=other)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_tensors(tmp_path / "c", tensors(), kind=KIND, record={**record, "one": 2})
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


def damaged(path: Path, how: str) -> None:
    """Write a file that cannot be a whole artifact of ours."""
    write_tensors(path, tensors(), kind=KIND, record={})
    whole = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "header":
        path.write_bytes(whole[:20])
    elif how == "truncated":
        path.write_bytes(whole[:-1])
    elif how == "text":
        path.write_text("<html>404</html>")
    elif how == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif how == "foreign metadata":
        save_file({"a": torch.zeros(1)}, path, metadata={"format": "pt"})
    elif how == "other kind":
        write_tensors(path, tensors(), kind="teddy.other.v1", record={})
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("empty", "damaged or not safetensors"),
        ("header", "damaged or not safetensors"),
        ("truncated", "damaged or not safetensors"),
        ("text", "damaged or not safetensors"),
        ("foreign", "got a foreign safetensors file"),
        ("foreign metadata", "got a foreign safetensors file"),
        ("other kind", r"got teddy\.other\.v1"),
        ("folder", "found a folder there"),
        ("missing", "found nothing there"),
    ],
)
def test_file_that_is_not_ours_is_refused_in_one_line(
    tmp_path: Path, how: str, expected: str
) -> None:
    path = tmp_path / "t.safetensors"
    damaged(path, how)
    for read in (read_tensors, read_record):
        with pytest.raises(TeddyError, match=expected) as caught:
            read(path, kind=KIND)
        message = str(caught.value)
        assert message.startswith(f"{path}: expected a {KIND} file")
        assert "\n" not in message


@pytest.mark.parametrize("text", ["not json", "[1]", '"text"'])
def test_foreign_record_under_our_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"teddy": text})
    with pytest.raises(TeddyError, match=r"t\.safetensors: expected a teddy\.test\.v1 file"):
        read_record(path, kind=KIND)


# --------------------------------------------------------------------------------------- digests


def test_digest_depends_on_content_and_names(tmp_path: Path) -> None:
    for folder, files in (
        ("a", {"x": "1", "sub/y": "2"}),
        ("b", {"sub/y": "2", "x": "1"}),
        ("c", {"x": "1", "sub/z": "2"}),
        ("d", {"x": "12", "sub/y": ""}),
    ):
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    a, b, c, d = (digest(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert digest(tmp_path / "a" / "x") == digest(tmp_path / "b" / "x")
    assert digest(tmp_path / "a" / "x") != digest(tmp_path / "d" / "x")


# --------------------------------------------------------------------------------- work in progress


def test_work_of_equal_settings_is_found_again_and_of_others_is_not(workplace: Path) -> None:
    first = WorkDir("stage", "a/b", seed=0, config={"x": 1, "y": 2})
    assert first.path == WorkDir("stage", "a/b", config={"y": 2, "x": 1}, seed=0).path
    others = [
        WorkDir("stage", "a/b", seed=1, config={"x": 1, "y": 2}),
        WorkDir("stage", "a/b", seed=0, config={"x": 1, "y": 3}),
        WorkDir("stage", "a/c", seed=0, config={"x": 1, "y": 2}),
        WorkDir("other", "a/b", seed=0, config={"x": 1, "y": 2}),
    ]
    assert len({work.path for work in [first, *others]}) == 5
    assert first.path.is_relative_to(workplace)


def test_work_of_other_code_is_not_found(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = WorkDir("stage", "a").path
    monkeypatch.setattr("teddy.core.artifacts.source_digest", lambda: "other code")
    assert WorkDir("stage", "a").path != first


def test_finished_work_is_published_and_discarded(workplace: Path, tmp_path: Path) -> None:
    work = WorkDir("stage", "a")
    write_json(work / "one.json", {"n": 1})
    write_json(work / "resume.json", {"n": 2})
    work.publish(tmp_path / "out", ["one.json"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["one.json"]
    assert json.loads((tmp_path / "out" / "one.json").read_text()) == {"n": 1}
    work.discard()
    assert not work.path.exists()
    work.discard()


# ------------------------------------------------------------------------------------ locked work

HOLDER = """
import os, sys, time
from teddy.core.artifacts import WorkDir
work = WorkDir("stage", "a").claim()
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read() if child else time.sleep(600)
work.discard()
"""


@pytest.fixture
def holder(workplace: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another command that makes ``stage a``, and has forked a process that outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )  # fmt: skip
    assert process.stdout and process.stdin
    child = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.communicate()


def test_second_command_for_an_artifact_is_refused_until_the_first_ends(
    holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teddy.core.artifacts._LOCK_TRIES", 2)
    WorkDir("stage", "b").claim().discard()
    work = WorkDir("stage", "a")
    with pytest.raises(TeddyError, match=r"stage/a-.*another process is making this artifact"):
        work.claim()
    holder.kill()
    holder.wait()
    assert work.claim() is work
    work.discard()
    assert not list(work.path.parent.iterdir())


def test_lock_ends_with_the_folder(
    holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a lock does not get it in a folder that was discarded meanwhile."""

    def first_ends(seconds: float) -> None:
        assert holder.stdin
        holder.stdin.close()
        holder.stdin = None
        holder.wait()

    monkeypatch.setattr("time.sleep", first_ends)
    work = WorkDir("stage", "a").claim()
    assert (work / ".lock").exists()
    write_json(work / "item.json", {})
    work.discard()
    assert not list(work.path.parent.iterdir())


def test_same_process_claims_again_and_publishes_no_lock(workplace: Path, tmp_path: Path) -> None:
    work = WorkDir("stage", "a").claim()
    write_json(work / "item.json", {})
    WorkDir("stage", "a").claim().publish(tmp_path / "out", ["item.json"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["item.json"]
    work.discard()
    WorkDir("stage", "a").claim().discard()
