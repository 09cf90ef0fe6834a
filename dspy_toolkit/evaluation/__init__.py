"""Running a program over a split: one score for each row, what it cost, and how it fares class by class.

report      what an evaluation gives back
rows        running and scoring rows: what is a wrong answer, a bad row, a failure
evaluating  a whole split, once or several times, with a report
agreement   a judge against people: kappa, sensitivity, specificity, and its mean corrected for them
confidence  the expected calibration error of predictions that say how sure they are
classes     accuracy, macro-F1, precision, recall and confusion where an output is a choice

Not covered: retrying (the orchestrator's tasks do), comparing two reports (`gate.decide`), and permission to open a
sealed split (`gate.ledger`).
"""

from __future__ import annotations

from dspy_toolkit.evaluation.agreement import Agreement, Calibration, JudgeCheck, agree, calibrate, corrected_mean
from dspy_toolkit.evaluation.classes import ClassReport, ClassScore, class_reports
from dspy_toolkit.evaluation.estimates import Estimate
from dspy_toolkit.evaluation.evaluating import evaluate
from dspy_toolkit.evaluation.report import Report, RowScore, Status
from dspy_toolkit.evaluation.rows import METRIC_ERRORS, ROW_ERRORS, score_rows

__all__ = [
    "METRIC_ERRORS",
    "ROW_ERRORS",
    "Agreement",
    "Calibration",
    "ClassReport",
    "ClassScore",
    "Estimate",
    "JudgeCheck",
    "Report",
    "RowScore",
    "Status",
    "agree",
    "calibrate",
    "class_reports",
    "corrected_mean",
    "evaluate",
    "score_rows",
]
