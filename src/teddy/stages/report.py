"""Write metrics, tables and figures from the records of all other stages."""

from collections.abc import Sequence
from pathlib import Path

from teddy import figures
from teddy.artifacts import check_writable, write_json
from teddy.config import Params
from teddy.records import (
    Base,
    History,
    ImageGrid,
    PaperResult,
    PoolFacts,
    Score,
    Titles,
    read_bases,
    read_grids,
    read_histories,
    read_paper,
    read_pools,
    read_scores,
    read_titles,
)
from teddy.report import (
    accuracy_points,
    long_table,
    paper_table,
    pool_table,
    result_tables,
    summarise,
    synthesis_points,
    teacher_points,
)
from teddy.runtime import run_stage
from teddy.stages.command import parse
from teddy.tables import write_text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "",
        runs="folder of the students' records",
        teachers="folder of the base runs' records",
        syntheses="folder of the loss curves of synthesis",
        pools="folder of the pools' manifests",
        sets="folder of the distilled sets",
        paper="numbers printed in the paper",
        summary="JSON to write with all metrics",
        tables="folder for tables",
        plots="folder for figures and their points",
    )

    def stage() -> str:
        params = Params(args.params)
        check_writable(args.summary, args.tables / "table1.md", args.plots / "accuracy.png")
        scores = read_scores(params, args.runs)
        bases, pools = read_bases(params, args.teachers), read_pools(params, args.pools)
        histories, grids = read_histories(params, args.syntheses), read_grids(params, args.sets)
        paper = read_paper(args.paper)
        write_json(args.summary, summarise(scores, bases, pools))
        _write_tables(args.tables, scores, pools, paper, params)
        _write_points(args.plots, scores, bases, histories)
        _draw(args.plots, scores, bases, pools, histories, grids, read_titles(params))
        return f"{len(params.sets)} sets of {len({s.dataset for s in scores})} datasets"

    run_stage("report", stage)


def _write_tables(
    folder: Path,
    scores: Sequence[Score],
    pools: Sequence[PoolFacts],
    paper: Sequence[PaperResult],
    params: Params,
) -> None:
    tables = [*result_tables(scores, paper, params), paper_table(paper)]
    markdown = "\n".join(["# Table 1: accuracy\n", *(table.markdown() for table in tables)])
    write_text(folder / "table1.md", markdown)
    write_text(folder / "table1.tex", "\n".join(table.latex() for table in tables))
    write_text(folder / "table1.csv", long_table(scores, paper, params).csv())
    write_text(folder / "pools.md", pool_table(pools).markdown())
    write_text(folder / "pools.csv", pool_table(pools).csv())


def _write_points(
    folder: Path, scores: Sequence[Score], bases: Sequence[Base], histories: Sequence[History]
) -> None:
    write_text(folder / "accuracy.csv", accuracy_points(scores).csv())
    write_text(folder / "teachers.csv", teacher_points(bases).csv())
    write_text(folder / "synthesis.csv", synthesis_points(histories).csv())


def _draw(
    folder: Path,
    scores: Sequence[Score],
    bases: Sequence[Base],
    pools: Sequence[PoolFacts],
    histories: Sequence[History],
    grids: Sequence[ImageGrid],
    titles: Titles,
) -> None:
    figures.accuracy(folder / "accuracy.png", scores, bases, titles)
    figures.teachers(folder / "teachers.png", bases, pools, titles)
    figures.synthesis(folder / "synthesis.png", histories, titles)
    for dataset in titles.datasets:
        own = [grid for grid in grids if grid.dataset == dataset]
        if own:
            figures.method_grid(folder / f"grid_{dataset}.png", own, titles)
        for grid in own:
            figures.class_grid(folder / f"grid_{dataset}_{grid.method}.png", grid, titles)


if __name__ == "__main__":
    main()
