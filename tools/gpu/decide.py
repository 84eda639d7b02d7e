"""Verdicts from what a run on a GPU has brought back: which mechanism pays, which target is met."""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import ratio
from benchmarks.synthesis import BESIDE, ENGINE, FUSED, PLAIN, RECORDED
from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json, write_json
from teddy.core.tables import Column, Table, percent, write_text
from tools.gpu.parts import WORKLOADS

PAYS = 1.05
"""Ratio of speeds, median over alternating rounds, from which a mechanism is worth its code."""
MECHANISMS = {
    "fused kernels": (FUSED, ENGINE),
    "CUDA graphs": (RECORDED, FUSED),
    **{
        f"{count} batches at a time": (f"{RECORDED}, {count} batches at a time", RECORDED)
        for count in BESIDE
    },
}
"""Programs with a mechanism, and without."""
MEMORY = (f"{FUSED}, bfloat16, k = 1", f"{FUSED}, two_pass, bfloat16, k = 3")
"""Programs whose memory is held against each other."""
_ACCURACIES = ("tiny10", "cifar10")


def decide(results: Path, out: Path) -> list[Json]:
    """Write records and verdicts; the verdicts.

    Args:
        results: folder of :mod:`tools.gpu.parts`.
        out: folder of the records.

    Raises:
        TeddyError: nothing came back.
    """
    machine, parts = read_json(results / "machine.json"), read_json(results / "parts.json")["parts"]
    origin = {key: machine.get(key) for key in ("hardware", "commit", "command")}
    speeds = {
        name: record
        for workload in WORKLOADS
        if (path := results / f"speed-{workload}.json").is_file()
        for record in [read_json(path)]
        for name in record["workloads"]
    }
    verdicts = [*_of_tests(results), *_of_speeds(speeds)]
    tables = [_speed_table(name, record) for name, record in speeds.items()]
    accuracies: Json = {}
    for part in _ACCURACIES:
        records = {
            file.relative_to(results / part / "evaluations").with_suffix("").as_posix():
                read_json(file)
            for file in sorted((results / part / "evaluations").rglob("*.json"))
        }  # fmt: skip
        if records:
            accuracies[part] = records
            tables.append(_accuracy_table(part, records))
            verdicts += _of_accuracies(part, records)
    if not verdicts:
        raise TeddyError(f"{results}: no part came to a result: {parts}")
    dates = [record["date"] for record in speeds.values()]
    whole = {"date": min(dates, default=None), **origin, "parts": parts, "verdicts": verdicts}
    write_json(out / "gpu-verdicts.json", whole, in_order=True)
    if speeds:
        write_json(out / "gpu-speed.json", origin | {"records": speeds}, in_order=True)
    if accuracies:
        write_json(out / "gpu-accuracy.json", origin | {"evaluations": accuracies}, in_order=True)
    if (results / "profile.json").is_file():
        own = origin | read_json(results / "profile.json")
        write_json(out / "gpu-profile.json", own, in_order=True)
        tables.append(_kernel_table(own))
    text = [_head(whole), _verdict_table(verdicts).markdown(), *(t.markdown() for t in tables)]
    write_text(out / "gpu-verdicts.md", "\n".join(text))
    return verdicts


def _verdict(what: str, outcome: str, evidence: str) -> Json:
    return {"what": what, "outcome": outcome, "evidence": evidence}


def _of_tests(results: Path) -> Iterator[Json]:
    log = results / "tests.log"
    if not log.is_file():
        return
    lines = re.findall(
        r"(?m)^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", log.read_text(encoding="utf-8")
    )
    outcomes = [outcome for _, outcome in lines]
    bad = [name for name, outcome in lines if outcome in ("FAILED", "ERROR")]
    evidence = f"{outcomes.count('PASSED')} passed, {outcomes.count('SKIPPED')} skipped"
    evidence += f", {len(bad)} failed: {', '.join(bad[:20])}" if bad else ""
    good = outcomes.count("PASSED") and not bad
    yield _verdict("tests on the device", "works" if good else "does not work", evidence)


# ------------------------------------------------------------------------------------------ speed


def _of_speeds(speeds: Mapping[str, Json]) -> Iterator[Json]:
    for name, record in speeds.items():
        found = record["workloads"][name]
        programs, title = found["programs"], f"{found['title']}, batch {found['batch']}"
        for mechanism, (with_, without) in MECHANISMS.items():
            for own in _settings_of(programs, with_):
                if f"{without}, {own}" not in programs:
                    continue
                faster, slower = programs[f"{with_}, {own}"], programs[f"{without}, {own}"]
                gain = ratio(_per_pass(slower), _per_pass(faster))
                outcome = "pays" if gain >= PAYS else "does not pay"
                yield _verdict(f"{mechanism}: {title}, {own}", outcome, f"{gain:.2f} times as fast")
        yield from _targets(title, found)
    for job in {job["job"]: job for r in speeds.values() for job in r["jobs"]}.values():
        hours = {k: v for k, v in job["hours"].items() if k.startswith("engine")}
        if hours:
            best = min(hours, key=lambda program: hours[program])
            yield _verdict(f"{job['job']}, extrapolated", f"{hours[best]:.2f} h", best)


def _targets(title: str, found: Json) -> Iterator[Json]:
    programs = found["programs"]
    engines = {n: p for n, p in programs.items() if p["kind"] == "engine" and "bfloat16" in n}
    if not engines:
        return
    best = min(engines, key=lambda name: engines[name]["ms_per_pass"])
    for other, least in ((PLAIN, 6.0), ("plain loop, bfloat16", 6.0), *(
        (name, 2.0) for name in programs if name.endswith("compiled")
    )):  # fmt: skip
        if other in programs:
            gain = ratio(_per_pass(programs[other]), _per_pass(engines[best]))
            yield _asked(f"speed over {other}: {title}", gain, least, best)
    yield _asked(
        f"share of the convolutions' speed: {title}", engines[best]["share_of_floor_speed"], 0.6,
        best,
    )  # fmt: skip
    one, three = MEMORY
    if {one, three} <= programs.keys():
        share = programs[three]["peak_bytes"] / programs[one]["peak_bytes"]
        yield _verdict(
            f"memory of k = 3 by two_pass over k = 1: {title}",
            "as asked" if share <= 1.15 else "missed", f"{share:.2f}; at most 1.15 is asked for",
        )  # fmt: skip


def _asked(what: str, found: float, least: float, program: str) -> Json:
    outcome = "as asked" if found >= least else "missed"
    return _verdict(what, outcome, f"{found:.2f}, {least:g} is asked for; {program}")


def _settings_of(programs: Mapping[str, Any], way: str) -> list[str]:
    """Precision and k of all programs of a way."""
    pattern = re.compile(rf"{re.escape(way)}, ((?:float32|bfloat16), k = \d+)")
    return [found[1] for name in programs if (found := pattern.fullmatch(name))]


def _per_pass(program: Json) -> list[float]:
    return [ms / (program["teachers"] * program["batches"]) for ms in program["ms"]]


def _speed_table(name: str, record: Json) -> Table:
    found = record["workloads"][name]
    rows = tuple(
        (program, own["ms_per_iteration"], own["ms_per_pass"], own["times_plain_speed"],
         own["share_of_floor_speed"], own.get("peak_bytes", 0) / 2**20 or None)
        for program, own in found["programs"].items()
    )  # fmt: skip
    columns = (
        Column("program", text=True), Column("ms/iteration", spec=",.2f"),
        Column("ms/pass", spec=",.2f"), Column("× plain", spec=".2f"),
        Column("of floor's speed", spec=".2f"), Column("peak MiB", spec=",.0f"),
    )  # fmt: skip
    rounds = len(next(iter(found["programs"].values()))["ms"])
    note = f"Median of {rounds} alternating rounds; see `python -m benchmarks synthesis`."
    return Table(f"{found['title']}, batch {found['batch']}", columns, rows, (note,))


# --------------------------------------------------------------------------------------- accuracy


def _last(record: Json, labels: str) -> list[float]:
    return [student["top1_last"] for student in record["labels"].get(labels, [])]


def _cell(values: Sequence[float]) -> str | None:
    if not values:
        return None
    return percent(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _accuracy_table(part: str, records: Mapping[str, Json]) -> Table:
    rows = tuple(
        (name.partition("/")[2], _cell(_last(record, "hard")), _cell(_last(record, "soft")),
         max(len(_last(record, kind)) for kind in record["labels"]))
        for name, record in records.items()
    )  # fmt: skip
    columns = (
        Column("row", text=True), Column("hard"), Column("soft"), Column("students"),
    )  # fmt: skip
    note = "Top-1 (%) on test images after the last epoch, mean ± sample standard deviation."
    return Table(f"Accuracy, {part}", columns, rows, (note,))


def _of_accuracies(part: str, records: Mapping[str, Json]) -> Iterator[Json]:
    """Each synthetic set against random real images of its size under the same labels."""
    for name, record in records.items():
        if record["method"].startswith("random"):
            continue
        for kind in record["labels"]:
            real = next(
                (_last(other, kind) for other in records.values()
                 if other["method"].startswith("random") and other["ipc"] == record["ipc"]
                 and (kind == "hard" or other["pool"] == record["pool"]) and _last(other, kind)),
                [],
            )  # fmt: skip
            ours = _last(record, kind)
            if not (ours and real):
                continue
            gain = statistics.fmean(ours) - statistics.fmean(real)
            pooled = (_variance(ours) / 2 + _variance(real) / 2) ** 0.5
            outcome = "better" if gain > pooled else "worse" if gain < -pooled else "inconclusive"
            yield _verdict(
                f"{name.partition('/')[2]} over random real images, {kind} labels ({part})",
                outcome if min(len(ours), len(real)) > 1 else "inconclusive",
                f"{gain:+.1f} points, pooled standard deviation {pooled:.1f}, n = {len(ours)}",
            )  # fmt: skip


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0


# -------------------------------------------------------------------------------------- for people


def _head(whole: Json) -> str:
    hardware = whole["hardware"] or {}
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    return (
        f"# On a GPU\n\nMeasured on {whole['date']} at commit {whole['commit']} on {gpus}, "
        f"{hardware.get('cpu')}, with `{whole['command']}`.\n"
    )


def _verdict_table(verdicts: Sequence[Json]) -> Table:
    columns = tuple(Column(name, text=True) for name in ("what", "outcome", "evidence"))
    rows = tuple((v["what"], v["outcome"], v["evidence"]) for v in verdicts)
    return Table("Verdicts", columns, rows)


def _kernel_table(record: Json) -> Table:
    columns = (Column("kernel", text=True), Column("calls"), Column("ms/iteration", spec=".3f"))
    rows = tuple((k["name"], k["calls"], k["ms_per_iteration"]) for k in record["kernels"])
    note = (
        f"{record['ms_per_iteration']:.2f} ms an iteration, of which the device was busy for "
        f"{record['busy_share']:.0%}."
    )
    return Table("Kernels of an iteration, k = 3", columns, rows, (note,))
