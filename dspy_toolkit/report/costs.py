"""What each step of a run spent.

The calls of a step that came from Prefect's cache are those that were spent when it was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dspy_toolkit.evaluation import Report
    from dspy_toolkit.pipeline.record import Run


class Cost(NamedTuple):
    """One step, or all of them."""

    step: str
    lm_calls: int
    """Logical: a cached reply counts too."""
    physical_calls: int | None
    """Calls that reached the model; None where they were not kept."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    """Wall time; None where it was not kept."""


def costs(run: Run) -> tuple[Cost, ...]:
    """A line for every step that asked a model, and a last one for their sum."""
    profile, compiled, challenge = run.profile, run.compiled, run.challenge
    lines = [
        Cost(
            "probe",
            round(profile.calls_per_run * profile.probed),
            None,
            round(profile.prompt_tokens * profile.probed),
            round(profile.completion_tokens * profile.probed),
            None,
        )
    ]
    if compiled.lm_calls:
        spent = compiled.lm_calls, compiled.physical_calls, compiled.prompt_tokens, compiled.completion_tokens
        lines.append(Cost(f"compile ({compiled.optimizer})", *spent, compiled.seconds))
    comparison = challenge.comparison
    reports = {
        "candidate on validation": challenge.candidate_val,
        "champion on validation": challenge.champion_val,
        "candidate on the sealed test": comparison and comparison.candidate,
        "champion on the sealed test": comparison and comparison.champion,
    }
    lines += [_of(step, report) for step, report in reports.items() if report is not None]
    total = Cost(
        "all",
        sum(line.lm_calls for line in lines),
        sum(line.physical_calls or 0 for line in lines),
        sum(line.prompt_tokens for line in lines),
        sum(line.completion_tokens for line in lines),
        sum(line.seconds or 0.0 for line in lines),
    )
    return (*lines, total)


def _of(step: str, report: Report) -> Cost:
    spent = report.lm_calls, report.physical_calls, report.prompt_tokens, report.completion_tokens
    return Cost(step, *spent, report.seconds)
