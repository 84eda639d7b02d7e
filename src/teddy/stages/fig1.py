"""Count and time what one update of a set costs, unrolled and by Teddy (Fig. 1)."""

from collections.abc import Sequence

from teddy.core.console import parse
from teddy.core.files import check_writable, write_json
from teddy.core.hardware import describe
from teddy.core.runtime import pick_device, run_stage, use_threads
from teddy.data.datasets import read_dataset
from teddy.settings.stages import Fig1Settings, read_settings
from teddy.theory import figures
from teddy.theory.documents import cost_document, cost_verdicts, write_experiment
from teddy.theory.unrolled_cost import clock, count, methods


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        data="prepared dataset",
        record="JSON to write with what was counted",
        table="Markdown to write",
        verdicts="JSON to write",
        figure="PNG to write",
        seconds="JSON to write with what was timed, different in every run",
        clock="PNG to write with what was timed",
    )

    def stage() -> str:
        settings = read_settings(Fig1Settings, args.settings)
        config, title = settings.config, settings.title
        check_writable(args.record, args.seconds)
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

    run_stage("fig1", stage)


if __name__ == "__main__":
    main()
