"""``python -m tools.gpu``: see :mod:`tools.gpu`."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from teddy.core.console import run_command
from teddy.core.errors import TeddyError
from teddy.core.files import Json, write_json
from tools.gpu import slices
from tools.gpu.parts import PARTS, ROOT, Run, run_parts

_MIB = 52  # of a slice: 64 travel at a time, and the repository with them
_DISK_GIB = 4
_MODULES = {  # that a machine with PyTorch may lack, and the packages that have them
    "torchvision": "torchvision", "torch_pruning": "torch-pruning", "pydantic": "pydantic",
    "annotated_types": "annotated-types", "yaml": "pyyaml", "safetensors": "safetensors",
    "sklearn": "scikit-learn", "PIL": "pillow", "tqdm": "tqdm", "matplotlib": "matplotlib",
    "markdown_it": "markdown-it-py", "pytest": "pytest", "hypothesis": "hypothesis",
    "ruamel.yaml": "ruamel.yaml", "filelock": "filelock",
}  # fmt: skip
_WHEELS = ("torch-pruning", "pydantic", "pydantic-core", "annotated-types", "typing-inspection",
           "ruamel.yaml")  # fmt: skip
_PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu", description=sys.modules["tools.gpu"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="cut data and wheels into slices for one transfer each")
    pack.add_argument("--tiny", type=Path, help="archive or folder tiny-imagenet-200")
    pack.add_argument("--cifar10", type=Path, help="archive or folder cifar-10-batches-py")
    pack.add_argument("--wheels", action="store_true", help="download what the machine may lack")
    pack.add_argument("--python", default="3.12", help="version there (%(default)s)")
    pack.add_argument("--mib", type=float, default=_MIB, help="of a slice, at most (%(default)s)")
    pack.add_argument("--out", type=Path, default=Path("work/gpu-slices"), help="(%(default)s)")
    receive = commands.add_parser("receive", help="put slices together on the machine")
    receive.add_argument("folder", type=Path, help="a slice")
    run = commands.add_parser("run", help="run all parts, each as far as its share of time reaches")
    run.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                     help=f"of {', '.join(PARTS)} (default: all)")  # fmt: skip
    run.add_argument("--minutes", type=float, default=12, help="of all of them (%(default)s)")
    run.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    run.add_argument("--rehearse", action="store_true", help="everything as small as possible")
    run.add_argument("--out", type=Path, default=Path("work/gpu-results"), help="(%(default)s)")
    for command in (receive, run):
        command.add_argument(
            "--store", type=Path, default=Path("work/gpu-store"),
            help="folder for files that are whole, and checkouts (%(default)s)",
        )  # fmt: skip
    decide = commands.add_parser("decide", help="records and verdicts from what came back")
    decide.add_argument("results", type=Path, help="folder that `run` has written")
    decide.add_argument("--out", type=Path, default=Path("metrics/reference"), help="(%(default)s)")
    args = parser.parse_args(argv)
    action = {"pack": _pack, "receive": _receive, "run": _run, "decide": _decide}[args.command]
    run_command(f"gpu {args.command}", lambda: action(args))


# ------------------------------------------------------------------------------------- transfers


def _pack(args: argparse.Namespace) -> str:
    made = args.out.with_name(f"{args.out.name}-files")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    files: list[Path] = []
    if args.wheels:
        files.append(_wheels(made, args.python))
    if args.tiny:
        files.append(_tiny(args.tiny, made))
    if args.cifar10:
        files.append(_archive(args.cifar10, "cifar-10-batches-py", made))
    if not files:
        raise TeddyError("nothing to pack: name --wheels, --tiny or --cifar10")
    folders = slices.cut(files, args.out, int(args.mib * 2**20))
    shutil.rmtree(made)
    return f"{', '.join(file.name for file in files)} in {len(folders)} slices in {args.out}"


def _wheels(made: Path, python: str) -> Path:
    folder = made / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
               *(f"--platform={name}" for name in _PLATFORMS), "--dest", str(folder),
               *(_pinned(name) for name in _WHEELS)]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        raise TeddyError("pip could not download the wheels; its message stands above")
    return _tarred(folder, made / "wheels.tar")


def _pinned(package: str) -> str:
    """The version that is installed here, so that packages fit each other there."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package


def _tiny(source: Path, made: Path, classes: int = 10) -> Path:
    """The first classes of a Tiny-ImageNet, as a smaller one."""
    name = "tiny-imagenet-200"
    folder = _unpacked(source, name, made / "whole")
    small = made / name
    kept = (folder / "wnids.txt").read_text(encoding="utf-8").split()[:classes]
    (small / "val").mkdir(parents=True)
    (small / "wnids.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    for words in folder.glob("words*.txt"):
        shutil.copy(words, small)
    for wnid in kept:
        shutil.copytree(folder / "train" / wnid, small / "train" / wnid)
    listed = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    own = [line for line in listed if line.split("\t")[1] in kept]
    text = "".join(f"{line}\n" for line in own)
    (small / "val" / "val_annotations.txt").write_text(text, encoding="utf-8")
    (small / "val" / "images").mkdir()
    for line in own:
        shutil.copy(folder / "val" / "images" / line.split("\t")[0], small / "val" / "images")
    return _tarred(small, made / f"{name}.tar")


def _archive(source: Path, name: str, made: Path) -> Path:
    if source.is_file():  # as it is
        return Path(shutil.copy(source, made / f"{name}.tar"))
    return _tarred(_unpacked(source, name, made), made / f"{name}.tar", "w:xz")


def _unpacked(source: Path, name: str, to: Path) -> Path:
    if source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(to, filter="data")
        source = to
    folder = source if source.name == name else source / name
    if not folder.is_dir():
        raise TeddyError(f"{source}: expected {name} in it")
    return folder


def _tarred(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, folder.name)
    return path


def _receive(args: argparse.Namespace) -> str:
    whole, missing = slices.join(args.folder, args.store)
    places = {"tiny-imagenet-200": "tiny10", "cifar-10-batches-py": "cifar10", "wheels": "."}
    for path in whole:
        place = args.store / places[path.stem] / path.stem
        if not place.exists():
            with tarfile.open(path) as archive:
                archive.extractall(place.parent, filter="data")
    wheels = args.store / "wheels"
    if wheels.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--upgrade", "--target", str(args.store / "site"),
                   *map(str, sorted(wheels.glob("*.whl")))]  # fmt: skip
        if subprocess.run(command, check=False).returncode:
            raise TeddyError("pip could not install the wheels; its message stands above")
    still = f"; slices still missing of {', '.join(missing)}" if missing else ""
    return f"{', '.join(path.name for path in whole) or 'nothing'} whole{still}"


# ------------------------------------------------------------------------------------------ runs


def _run(args: argparse.Namespace) -> str:
    site = args.store.resolve() / "site"
    if site.is_dir():  # packages that came as wheels
        sys.path.insert(0, str(site))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args.device, args.out.resolve(), args.store.resolve(), args.rehearse)
    facts, reasons = examine(run, args.parts)
    write_json(args.out / "machine.json", facts | {"command": " ".join(sys.orig_argv[1:])})
    if len(reasons) == len(args.parts):
        raise TeddyError(f"no part can run here: {'; '.join(dict.fromkeys(reasons.values()))}")
    results = run_parts(run, args.parts, args.minutes, reasons)
    done = [name for name in args.parts if results[name]["outcome"] == "done"]
    return f"{len(done)} of {len(args.parts)} parts to their end; results in {args.out}"


def examine(run: Run, parts: Sequence[str]) -> tuple[Json, dict[str, str]]:
    """What the machine is, and why parts cannot run on it, one line each."""
    missing = [package for module, package in _MODULES.items() if not _there(module)]
    if missing:
        line = f"this Python lacks {', '.join(missing)}; pack and receive wheels first"
        return {}, dict.fromkeys(parts, line)
    import torch

    from teddy.core.hardware import describe

    facts: Json = {"hardware": describe(), "device": run.device}
    facts["commit"] = os.environ.get("TEDDY_COMMIT") or _commit()
    reasons: dict[str, str] = {}
    gib = float("inf")
    if run.device == "cuda":
        try:
            torch.cuda.init()
            free, _ = torch.cuda.mem_get_info()
            gib = free / 2**30
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            line = f"PyTorch {torch.__version__} cannot use a GPU here: {first}"
            return facts, dict.fromkeys(parts, line)
        facts["gpu_gib_free"] = round(gib, 1)
    disk = shutil.disk_usage(run.out).free / 2**30
    for name in parts:
        part = PARTS[name]
        if gib < part.gib and not run.rehearse:
            reasons[name] = f"needs {part.gib:.0f} GiB of GPU memory, {gib:.1f} are free"
        elif part.file and not (run.data / part.file).is_file():
            reasons[name] = f"{run.data / part.file} is not there; pack it, send it and receive it"
        elif disk < _DISK_GIB:
            reasons[name] = f"needs {_DISK_GIB} GiB of disk, {disk:.1f} are free"
    return facts, reasons


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _decide(args: argparse.Namespace) -> str:
    from tools.gpu.decide import decide

    verdicts = decide(args.results, args.out)
    for verdict in verdicts:
        print(f"{verdict['outcome']}: {verdict['what']} ({verdict['evidence']})")
    print(json.dumps({"verdicts": len(verdicts)}))
    return f"{len(verdicts)} verdicts; records in {args.out}"


if __name__ == "__main__":
    main()
