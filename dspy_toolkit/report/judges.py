"""What is known of the judge behind the scores, and what they come to when its errors are taken out.

Shown where a project's judge was checked against people's grades (`dspy-toolkit judge agreement --project`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dspy_toolkit.evaluation import Estimate, JudgeCheck, corrected_mean
from dspy_toolkit.evaluation.agreement import PASSES
from dspy_toolkit.report.words import Field, count, percent, readable

if TYPE_CHECKING:
    import pandas as pd


def judge_facts(check: JudgeCheck, tables: Sequence[pd.DataFrame]) -> Iterator[Field]:
    """Agreement with people, then the corrected share of passes of each program.

    Args:
        tables: of `evaluation.Report.rows`, with the judge's scores: the champion's, then the candidate's; or none.
    """
    found, calibration = check.agreement, check.calibration
    yield Field("Checked on", f"{count(found.n)} rows that people graded ({readable(check.source)})")
    yield Field("Same grade", _percent(found.raw))
    weighted = "" if found.weights == "none" else f", {found.weights} weights"
    kappa = found.kappa
    yield Field(
        f"Cohen's kappa{weighted}",
        f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})" if kappa else "only one grade was given",
    )
    yield Field("Passes what people pass", _percent(calibration.sensitivity))
    yield Field("Fails what people fail", _percent(calibration.specificity))
    for program, table in zip(("champion", "candidate"), tables, strict=False):
        passed = sum(value >= PASSES for value in table["value"])
        corrected = corrected_mean(passed, len(table), calibration)
        yield Field(
            f"Passes of the {program}",
            f"{percent(passed / len(table))} by the judge; corrected for its errors {_percent(corrected)}",
        )


def _percent(share: Estimate | None) -> str:
    if share is None:
        return "people gave no such grade"
    return f"{percent(share.value)} ({100 * share.low:.0f} to {100 * share.high:.0f})"
