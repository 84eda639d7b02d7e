"""Count and time what one update of a set costs, unrolled and by Teddy (Fig. 1)."""

from argparse import Namespace

from teddy.core.files import write_json
from teddy.core.hardware import describe
from teddy.core.runtime import pick_device, use_threads
from teddy.data.datasets import read_dataset
from teddy.settings.stages import Fig1Settings
from teddy.theory import figures
from teddy.theory.documents import cost_document, cost_verdicts, write_experiment
from teddy.theory.unrolled_cost import clock, count, methods


def main(settings: Fig1Settings, args: Namespace) -> str:
    """Run the stage."""
    config, title = settings.config, settings.title
    dataset, device = read_dataset(args.data), pick_device()
    use_threads(device, dataset.image_shape)
    updates = methods(config, settings.synthesize, dataset, settings.seed, device)
    record = {
        "title": title,
        "images": config.ipc * dataset.num_classes,
        "batch_size": config.batch_size,
        "rows": [count(update) for update in updates],
    }
    timed = {
        "hardware": describe(),
        "rows": [clock(update, config.repeats, device) for update in updates],
    }
    write_experiment(args, record, cost_document, cost_verdicts, figures.cost)
    write_json(args.seconds, timed)
    figures.clocked(args.clock, timed, title)
    return f"{len(updates)} kinds of update"
