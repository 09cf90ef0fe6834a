"""`dspy-toolkit judge agreement`: whether a judge's grades can be trusted, from a file that people graded too.

Not covered: asking the judge. The table of an evaluation has its grades (the files `rows_val.json` of a run in MLflow, or
`Report.rows` as a file); add a column with a person's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    import pandas as pd

    from dspy_toolkit.evaluation import Agreement, Calibration, Estimate


def agreement(
    file: Path,
    *,
    human: str = "human",
    judge: str = "value",
    scale: Annotated[int, Parameter(validator=validators.Number(gte=2), show_default=False)] | None = None,
    weights: Literal["none", "linear", "quadratic"] | None = None,
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Compare a judge's grades with those of people: agreement, kappa, sensitivity and specificity, with 95 % intervals.

    30 to 100 rows are usual. Rows without a person's grade are left out.

    Args:
        file: A .csv, .jsonl or .parquet file with both grades of each row.
        human: The column of people's grades: scores from 0 to 1, yes and no, or 1 to SCALE.
        judge: The column of the judge's scores, from 0 to 1; `value` in the table of an evaluation.
        scale: The highest of people's grades, where they are 1 to SCALE.
        weights: How much a disagreement counts: quadratic by its square, where grades are more than two.
        project: A project whose metric is the judge: its pages will show this, and scores corrected for the judge's errors.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.datasets.reading import read_rows
    from dspy_toolkit.evaluation import agree, calibrate
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    ours, theirs = _grades(read_rows(file), str(file), judge, human, scale)
    found, calibration = agree(ours, theirs, weights=weights), calibrate(ours, theirs)
    if json:
        shown = {"agreement": found.model_dump(), "calibration": calibration.model_dump()}
        print(json_text({**shown, "means": {"judge": _mean(ours), "people": _mean(theirs)}}, indent=2))
    else:
        _print(found, calibration, _mean(ours), _mean(theirs))
    if project:
        _keep(settings, project, file, found, calibration)


def _keep(settings: Any, name: str, file: Path, found: Agreement, calibration: Calibration) -> None:
    import sys

    from dspy_toolkit.evaluation import JudgeCheck
    from dspy_toolkit.pipeline.judge_check import keep_check, metric_hash
    from dspy_toolkit.project import load_project

    project = load_project(name, settings)
    settings = settings.for_project(project.name)
    check = JudgeCheck(
        metric=metric_hash(project, settings), source=file.name, agreement=found, calibration=calibration
    )
    print(f"Kept for the pages of {project.name}: {keep_check(settings, project, check)}", file=sys.stderr)


def _grades(
    rows: pd.DataFrame, origin: str, judge: str, human: str, scale: int | None
) -> tuple[list[float], list[float]]:
    """The scores in [0, 1] of the judge and of people, of the rows that a person graded."""
    from dspy_toolkit.errors import DatasetError, nearest

    columns = [str(name) for name in rows.columns]
    for column in (judge, human):
        if column not in columns:
            raise DatasetError(f'{origin} has no column "{column}".{nearest(column, columns)} Name it with an option.')
    graded = [
        (row, ours, theirs)
        for row, ours, theirs in zip(rows.index, rows[judge], rows[human], strict=True)
        if theirs is not None and str(theirs).strip()
    ]
    if not graded:
        raise DatasetError(f'{origin} has no grade in the column "{human}". Grade some 30 to 100 rows.')
    ours = [_score(value, origin, row, judge, None) for row, value, _ in graded]
    theirs = [_score(value, origin, row, human, scale) for row, _, value in graded]
    return ours, theirs


WORDS = {"yes": 1.0, "true": 1.0, "pass": 1.0, "no": 0.0, "false": 0.0, "fail": 0.0}


def _score(value: Any, origin: str, row: Any, column: str, scale: int | None) -> float:
    from dspy_toolkit.errors import DatasetError

    text = str(value).strip().casefold()
    try:
        number = WORDS[text] if text in WORDS else float(text)
    except ValueError:
        number = -1.0
    score = number if scale is None or text in WORDS else (number - 1) / (scale - 1)
    if not 0 <= score <= 1:
        asked = f"a number from 1 to {scale}" if scale else "a score from 0 to 1, or yes or no"
        hint = "" if scale or number <= 1 else " For grades from 1 up, give --scale."
        raise DatasetError(f"{origin}, row {row}: {column} is {value!r}. Write {asked}.{hint}")
    return round(score, 9)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _print(found: Agreement, calibration: Calibration, ours: float, theirs: float) -> None:
    from dspy_toolkit.display.tables import console, listing

    kappa = "only one grade was given" if found.kappa is None else _number(found.kappa)
    weighted = "" if found.weights == "none" else f", {found.weights} weights"
    rows = [
        ("same grade", _percent(found.raw)),
        (f"Cohen's kappa{weighted}", kappa),
        ("mean of the judge", f"{ours:.1%}"),
        ("mean of people", f"{theirs:.1%}"),
        (f"passes what people pass ({calibration.positives} rows)", _percent(calibration.sensitivity)),
        (f"fails what people fail ({calibration.negatives} rows)", _percent(calibration.specificity)),
    ]
    console().print(listing((f"{found.n} rows", "95 % interval"), rows))


def _percent(share: Estimate | None) -> str:
    return "no such row" if share is None else f"{share.value:.1%} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def _number(value: Estimate) -> str:
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"
