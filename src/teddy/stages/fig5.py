"""Optimise a small set with the exact meta-gradient and with its approximations (Fig. 5)."""

from argparse import Namespace

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.files import Json, manifest_digest, read_json, write_json
from teddy.core.runtime import for_each, pick_device
from teddy.core.seeding import derive
from teddy.data.datasets import read_dataset
from teddy.settings.schema import to_json
from teddy.settings.stages import Fig5Settings
from teddy.settings.theory import Fig5Config
from teddy.theory import figures
from teddy.theory.documents import taylor_document, taylor_verdicts, write_experiment
from teddy.theory.taylor import Comparison, measure_law, optimise


def main(settings: Fig5Settings, args: Namespace) -> str:
    """Run the stage."""
    config = settings.config
    dataset, device = read_dataset(args.data), pick_device()
    work = WorkDir(
        "fig5", config.data, config=to_json(config), seed=settings.seed,
        data=manifest_digest(args.data),
    ).claim()  # fmt: skip
    runs = [(name, seed) for seed in config.seeds for name in config.objectives]

    def finish(index: int) -> None:
        path = work / f"{index}.json"
        if path.exists():
            return
        seed = runs[index][1] if index < len(runs) else config.seeds[0]
        key = derive(settings.seed, "fig5", seed)
        comparison = Comparison(config, dataset, key, device)
        if index < len(runs):
            write_json(path, optimise(comparison, runs[index][0]) | {"seed": seed})
        else:
            write_json(path, {"law": measure_law(comparison)})

    for_each(len(runs) + 1, finish, device)
    leave_to_first()
    record = _record(config, settings.title) | {
        "runs": [read_json(work / f"{index}.json") for index in range(len(runs))],
        "law": read_json(work / f"{len(runs)}.json")["law"],
    }
    write_experiment(args, record, taylor_document, taylor_verdicts, figures.taylor)
    work.discard()
    return f"{len(config.objectives)} objectives, {len(config.seeds)} seeds"


def _record(config: Fig5Config, title: str) -> Json:
    return {
        "title": title,
        "ipc": config.ipc,
        "inner_steps": config.inner_steps,
        "inner_lr": config.inner_lr,
        "iterations": config.iterations,
    }
