"""Draw images of a dataset's sets side by side, and each set alone (Figs 4, 6 and 7)."""

from argparse import Namespace

from teddy.report.image_grids import class_grid, method_grid
from teddy.report.records import read_grids
from teddy.settings.stages import SetsSettings


def main(settings: SetsSettings, args: Namespace) -> str:
    """Run the stage."""
    dataset, catalogue = settings.dataset, settings.catalogue
    grids = read_grids(settings.sets, args.sets)
    method_grid(args.figures / f"{dataset}.png", grids, catalogue)
    for grid in grids:
        class_grid(args.figures / f"{dataset}_{grid.method}.png", grid, catalogue)
    return f"{dataset}/{settings.target}: {len(grids)} sets"
