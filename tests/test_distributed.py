"""torchrun: the same bytes from any number of processes, teams that train, failures and locks.

Processes run this file as a script, each doing the jobs it is told. No GPU, no downloads; a launch
takes some ten seconds on two cores, so a launch does many jobs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkouts import PRIOR, command, outputs, tiny_checkout
from checkouts import commands as command_lines

from teddy.core import distributed
from teddy.core.artifacts import WorkDir
from teddy.core.distributed import Team, team
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from teddy.core.runtime import cores, for_each, pick_device, run_stage
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import NetworkConfig, OptimizerConfig, ViewConfig
from teddy.teachers.making import _refuse_small_shares
from teddy.teachers.networks import build
from teddy.teachers.training import Run, fit, real_batches

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
Job = list[str]

# ------------------------------------------------------------------ what a launched process does


def main(jobs: list[Job]) -> None:
    """Do jobs in turn: a stage and its arguments, or a function of this file and its folder."""
    if jobs[0] == ["apart"]:
        return apart(jobs[1:])
    from teddy.stages import commands

    for name, *arguments in jobs:
        if name in commands.COMMANDS:
            commands.main([name, *arguments])
        else:
            job: Callable[[Path], str] = globals()[name]
            folder = Path(arguments[0])
            run_stage(name, lambda job=job, folder=folder: job(folder), parallel=True)  # type: ignore[misc]


def apart(jobs: list[Job]) -> None:
    """Do each job in a process of its own, which no launcher ends; write how it ended."""
    codes = {}
    for index, job in enumerate(jobs):
        child = os.fork()
        if child == 0:
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(index)  # its own keys in the store
            main([job])
            os._exit(0)
        codes[job[0]] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    write_json(Path(f"codes{os.environ['RANK']}.json"), codes)


def stripes() -> Images:
    """50 noisy images of two classes."""
    noise = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 2
    pattern = (torch.arange(8) // 2 % 2).float()
    rows = torch.where(labels[:, None, None, None] == 0, pattern[:, None], pattern)
    return Images((100 + 50 * rows + 25 * noise).clamp(0, 255).to(torch.uint8), labels)


def train(norm: str, precision: str, epochs: int, folder: Path, processes: Team) -> dict[str, Any]:
    """Train on steps of 25 images, so that two processes have unequal shares."""
    config = OptimizerConfig(
        name="sgd", lr=0.1, momentum=0.0, betas=(0.9, 0.999), weight_decay=0.0, decay_1d=True,
        schedule="constant", step_epochs=1, step_factor=1.0, warmup_epochs=0,
    )  # fmt: skip
    network = build(
        NetworkConfig(arch="convnet3", width=4, norm=norm),  # type: ignore[arg-type]
        (1, 8, 8), 2, seed=0,
    )  # fmt: skip
    images, half = stripes(), Normalisation((0.5,), (0.2,))
    views = ViewConfig(crop_scale=0.7, hflip=True, roll=(0, 1))
    run = Run(
        name="test", seed=1, epochs=epochs, steps_per_epoch=2,
        batches=real_batches(images, half, views, 25, seed=1, team=processes),
        after_epoch=lambda epoch: {}, precision=precision, resume=folder / f"{norm}-{precision}",
        team=processes,
    )  # fmt: skip
    history = fit(network, config, run, CPU)
    return {
        "losses": [record["loss"] for record in history],
        "weights": torch.cat([p.detach().flatten() for p in network.parameters()]).tolist(),
        "buffers": [b.double().sum().item() for b in network.buffers()],
    }


def team_trains(folder: Path) -> str:
    """Every process writes what it ends with."""
    with team(CPU) as processes:
        results = {
            "group": train("group", "float32", 2, folder, processes),
            "batch": train("batch", "bfloat16", 2, folder, processes),
        }
    write_json(folder / f"team{processes.rank}.json", results)
    distributed.leave_to_first()
    return ""


def one_fails(folder: Path) -> str:
    """The second process refuses while the first waits for it."""
    if distributed.rank() == 1:
        raise TeddyError("the second process refuses")
    distributed.barrier()
    return "went on"


def one_crashes(folder: Path) -> str:
    """The first process has a bug while the second waits for it."""
    distributed.barrier()
    distributed.leave_to_first()
    raise AttributeError("a bug")


def one_is_killed(folder: Path) -> str:
    """The second process of a team is gone."""
    with team(CPU) as processes:
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.sum(torch.ones(1))
    return "went on"


def all_fail(folder: Path) -> str:
    """All refuse for the same reason."""
    raise TeddyError("everybody refuses")


def folders_differ(folder: Path) -> str:
    """The processes do not share their work folder."""
    os.environ["TEDDY_WORK"] = str(folder / str(distributed.rank()))
    WorkDir("stage", "a").claim()
    return "went on"


def inputs_differ(folder: Path) -> str:
    """The processes were given different settings."""
    WorkDir("stage", "a", seed=distributed.rank()).claim()
    return "went on"


# ---------------------------------------------------------------------------------- launching them


def start(folder: Path, jobs: list[Job], **variables: str) -> "subprocess.Popen[str]":
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [sys.executable, *launcher, __file__, json.dumps(jobs)],
        cwd=folder, text=True, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TEDDY_DEVICE": "cpu",
             "TEDDY_WORK": str(folder / "work"), "TEDDY_WORKERS": "4", **variables},
    )  # fmt: skip


def launch(folder: Path, jobs: list[Job]) -> None:
    process = start(folder, jobs)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


# --------------------------------------------------------------------------------- a tiny pipeline

SHARED = ("build_pool", "synthesize", "relabel", "evaluate")
SETS = (PRIOR, "digits/main/ipc3/random")


def jobs(folder: Path, *stages: str) -> list[Job]:
    """Command lines of stages as ``dvc.yaml`` writes them; of two sets alone."""
    found: list[Job] = []
    for stage in stages:
        if stage in ("prepare", "train_teacher", "build_pool"):
            found += command_lines(folder, stage)
        else:
            found += [command(folder, stage, name) for name in SETS]
    return found


def teacher(folder: Path, out: str) -> Job:
    """Train the base model into another folder."""
    paths = {"out": f"{out}/models", "curve": f"{out}/metrics/base.json"}
    return command(folder, "train_teacher", "digits/base", **paths)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Outputs of all stages, made by this process alone."""
    folder = tmp_path_factory.mktemp("one")
    tiny_checkout(folder, synthesize__indices_per_batch=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TEDDY_WORKERS", "1")
        patch.setenv("TEDDY_DEVICE", "cpu")
        main(jobs(folder, "prepare", "train_teacher", *SHARED))
    yield folder


@pytest.fixture(scope="module")
def two_processes(one_process: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same from the same base run by two processes, and base runs of the two."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(one_process / name, folder)
    for made in ("experiments", "inputs", "models/digits/base", "metrics/teachers"):
        shutil.copytree(one_process / made, folder / made)
    teams: list[Job] = [teacher(folder, "team"), teacher(folder, "again")]
    launch(folder, [*jobs(folder, "prepare", *SHARED), *teams, ["team_trains", str(folder)]])
    return folder


def test_two_processes_make_the_bytes_of_one(one_process: Path, two_processes: Path) -> None:
    assert outputs(two_processes) == outputs(one_process)
    assert len(list((one_process / "data").rglob("epochs*"))) == (2 + 1) * 8, "syntheses × shards"


def test_work_of_two_processes_is_discarded(two_processes: Path) -> None:
    assert not [path for path in (two_processes / "work").rglob("*") if path.is_file()]


def test_stages_are_logged_once(two_processes: Path) -> None:
    for stage, times in (("prepare", 1), ("synthesize", 2), ("evaluate", 2)):
        lines = (two_processes / "logs" / f"{stage}.jsonl").read_text().splitlines()
        assert len(lines) == times
        assert json.loads(lines[0])["processes"] == 2


def test_team_learns_like_one_process(one_process: Path, two_processes: Path) -> None:
    alone = read_json(one_process / "models/digits/base/record.json")["epochs"][-1]
    together = read_json(two_processes / "team/models/record.json")["epochs"][-1]
    assert together["val_top1"] == pytest.approx(alone["val_top1"], abs=8)
    assert together["loss"] == pytest.approx(alone["loss"], rel=0.15)
    assert together["loss"] != alone["loss"], "the batch was not shared"


def test_team_writes_the_files_of_one_process_and_repeats_them(two_processes: Path) -> None:
    alone = {file.name for file in (two_processes / "models/digits/base").iterdir()}
    assert {file.name for file in (two_processes / "team/models").iterdir()} == alone
    assert outputs(two_processes / "team") == outputs(two_processes / "again")
    assert len(outputs(two_processes / "team")) == len(alone) + 1


def test_averaged_gradient_is_that_of_the_whole_batch(two_processes: Path, tmp_path: Path) -> None:
    """Two plain SGD steps an epoch: weights differ as gradients do. Shares are 13 and 12 images."""
    alone = train("group", "float32", 2, tmp_path, Team())
    together = read_json(two_processes / "team0.json")["group"]
    torch.testing.assert_close(
        torch.tensor(together["weights"]), torch.tensor(alone["weights"]), rtol=1e-4, atol=1e-6
    )
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_all_processes_end_with_the_first_ones_network(two_processes: Path) -> None:
    first, second = (read_json(two_processes / f"team{rank}.json") for rank in (0, 1))
    assert first == second


# ------------------------------------------------------------------------------------ kill, resume


def killed_when(process: "subprocess.Popen[str]", folder: Path, pattern: str) -> None:
    """Kill torchrun once a file of unfinished work is there."""
    while not list((folder / "work").glob(pattern)):
        assert process.poll() is None, process.stderr and process.stderr.read()[-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_torchrun_resumes_to_the_same_bytes(two_processes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(two_processes, folder, ignore=shutil.ignore_patterns("work"))
    post = command(folder, "build_pool", "digits/post")
    images, labels = (command(folder, stage, PRIOR) for stage in ("synthesize", "relabel"))
    steps = [
        (teacher(folder, "team"), "team", "train_teacher/*/resume.*"),
        (post, "models/digits/post", "build_pool/*/resume*"),
        (images, f"data/distilled/{PRIOR}/0.safetensors", "synthesize/*/batch*"),
        (labels, f"data/labels/{PRIOR}", "relabel/*/epochs*"),
    ]
    expected = outputs(folder) | outputs(folder / "team")
    for _, made, _ in steps:
        path = folder / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    todo: list[Job] = []
    for job, _, unfinished in steps:
        todo = [*todo[-1:], job]
        killed_when(start(folder, todo, TEDDY_SAVE_SECONDS="0"), folder, unfinished)
        assert list((folder / "work").glob(unfinished)), "killed too late"
    launch(folder, todo[-1:])
    assert outputs(folder) | outputs(folder / "team") == expected


# ---------------------------------------------------------------------------------------- failures


def test_torchrun_ends_with_one_line_when_one_process_fails(tmp_path: Path) -> None:
    process = start(tmp_path, [["one_fails", str(tmp_path)]])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("error: the second process refuses") == 1, errors
    assert "went on" not in errors


FAILURES = {
    "one_fails": "error: the second process refuses",
    "one_crashes": "AttributeError: a bug",
    "all_fail": "error: everybody refuses",
    "folders_differ": "does not see the first process's files; set $TEDDY_WORK",
    "one_is_killed": "error: process 0 does not reach another one any more (",
    "inputs_differ": "has other inputs, code, PyTorch or kind of device",
}


def test_failure_of_one_ends_the_others_unaided_with_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, [["apart"], *([job, str(tmp_path)] for job in FAILURES)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for rank in (0, 1):
        codes = read_json(tmp_path / f"codes{rank}.json")
        killed = {"one_is_killed": -signal.SIGKILL} if rank else {}
        assert codes == dict.fromkeys(FAILURES, 1) | killed
    for line in FAILURES.values():
        assert errors.count(line) == 1, errors
    assert "went on" not in errors


@pytest.mark.parametrize(("batch_size", "fits"), [(8, True), (7, False), (9, True), (100, True)])
def test_shares_of_less_than_two_images_are_refused(batch_size: int, fits: bool) -> None:
    """Sixteen images among four processes."""
    _refuse_small_shares(batch_size, 16, 1)
    if fits:
        _refuse_small_shares(batch_size, 16, 4)
    else:
        with pytest.raises(TeddyError, match=rf"batch_size {batch_size} cuts 16 .* 4 processes"):
            _refuse_small_shares(batch_size, 16, 4)


# --------------------------------------------------------------------------- one of many, in short


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as torchrun's third of four, two of them on each machine."""
    for name, value in (
        ("RANK", 2), ("WORLD_SIZE", 4), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 2),
    ):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "_together", True)
    monkeypatch.setattr(distributed, "barrier", lambda: None)


def test_items_are_shared(third_of_four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEDDY_WORKERS", "3")
    done: list[int] = []
    for_each(11, done.append, CPU)
    assert done == [2, 6, 10]
    for_each(2, done.append, CPU)
    assert done == [2, 6, 10]


@pytest.mark.parametrize(("machine", "share"), [("8", 4), ("3", 1), ("1", 1)])
def test_cores_are_divided_among_the_processes_of_a_machine(
    third_of_four: None, monkeypatch: pytest.MonkeyPatch, machine: str, share: int
) -> None:
    monkeypatch.setenv("TEDDY_WORKERS", machine)
    assert cores() == share


def test_only_the_first_goes_on(third_of_four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(distributed.Left):
        distributed.leave_to_first()
    monkeypatch.setenv("RANK", "0")
    distributed.leave_to_first()
    assert (distributed.world_size(), list(distributed.share(3))) == (1, [0, 1, 2])


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [(2, "cuda", "cuda:0"), (1, "cuda", "2 processes on a machine with 1 GPUs"),
     (2, "cuda:1", "without a number")],
)  # fmt: skip
def test_every_process_has_its_own_gpu(
    third_of_four: None, monkeypatch: pytest.MonkeyPatch, gpus: int, name: str, expected: str
) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("TEDDY_DEVICE", name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.use_deterministic_algorithms", lambda *_, **__: None)
    if expected.startswith("cuda"):
        assert str(pick_device()) == expected
        assert chosen == [0]
    else:
        with pytest.raises(TeddyError, match=expected):
            pick_device()


def test_items_have_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one forks nothing: OpenMP would hang in the forked process."""
    seen: list[tuple[int, int]] = []
    for threads in (1, 3):
        monkeypatch.setenv("TEDDY_THREADS", str(threads))
        monkeypatch.setenv("TEDDY_WORKERS", str(threads))
        for_each(2, lambda index: seen.append((torch.get_num_threads(), os.getpid())), CPU)
    assert seen == [(1, os.getpid())] * 2 + [(3, os.getpid())] * 2
    monkeypatch.setenv("TEDDY_THREADS", "many")
    with pytest.raises(TeddyError, match=r"\$TEDDY_THREADS must be a whole number"):
        for_each(2, print, CPU)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
