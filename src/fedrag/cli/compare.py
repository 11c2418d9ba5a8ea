"""`fedrag compare`: reports on the same questions, pair by pair."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrag.errors import ConfigError, InputError

if TYPE_CHECKING:
    from fedrag.evaluation import Report
    from fedrag.evaluation.comparison import Comparison


def compare(
    before: Annotated[Path, typer.Argument(help="The report to compare with.", show_default=False)],
    after: Annotated[list[Path], typer.Argument(help="One report or more.", show_default=False)],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables for a page.")] = False,
) -> None:
    """Compare reports, question by question.

    Differences, 95 % intervals, p-values. Reports are what `fedrag evaluate --save` writes. Of several,
    p (Holm) is adjusted for every metric of all.
    """
    if json_ and markdown:
        raise ConfigError("--json and --markdown are two forms: leave one of them out")
    first = _report(before)
    found = _adjusted({str(path): _compared(_report(path), first, path) for path in after})
    if json_:
        told = [{"after": path, **asdict(comparison)} for path, comparison in found.items()]
        typer.echo(json.dumps({"before": str(before), "comparisons": told}))
        return
    for path, comparison in found.items():
        if len(found) > 1 or markdown:
            typer.echo(f"**{path}** against {before}\n" if markdown else f"{path} against {before}")
        typer.echo(_markdown(comparison) if markdown else str(comparison))


def _report(path: Path) -> Report:
    from fedrag.evaluation import Report

    if path.is_dir():
        raise InputError(f"{path} is a folder: compare takes reports; `fedrag diff` compares two systems")
    if not path.is_file():
        raise InputError(f"{path} is not there: name a report, as `fedrag evaluate --save` writes it")
    return Report.load(path)


def _compared(report: Report, before: Report, path: Path) -> Comparison:
    try:
        return report.compare(before)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _adjusted(found: dict[str, Comparison]) -> dict[str, Comparison]:
    """The comparisons with p-values adjusted for all of them together, by Holm's method."""
    from fedrag.evaluation.statistics import holm

    places = [(path, metric) for path, comparison in found.items() for metric in comparison.differences]
    p = dict(zip(places, holm([found[path].differences[metric].p for path, metric in places]), strict=True))
    return {
        path: replace(
            comparison,
            differences={
                metric: replace(row, p_holm=p[path, metric]) for metric, row in comparison.differences.items()
            },
        )
        for path, comparison in found.items()
    }


def _markdown(comparison: Comparison) -> str:
    rows = [["metric", "before", "after", "difference [95 % interval]", "p (Holm)", "n"], ["---"] * 6]
    for metric, row in comparison.differences.items():
        p = "<0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        change = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        rows.append([metric, f"{row.before:.3f}", f"{row.after:.3f}", change, p, str(row.n)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
