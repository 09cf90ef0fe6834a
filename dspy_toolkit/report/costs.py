"""What each step of a run spent.

A step that came from Prefect's cache has the calls that were spent when it ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.lm.usage import Usage

if TYPE_CHECKING:
    from dspy_toolkit.run import Run


class Cost(NamedTuple):
    """One step, or all of them."""

    step: str
    usage: Usage
    seconds: float | None
    """Wall time; None where it was not recorded."""
    physical_kept: bool = True
    """Whether the calls that reached the model were recorded."""


def costs(run: Run) -> tuple[Cost, ...]:
    """A line for every step that asked a model, and a last one for their sum."""
    profile, compiled, comparison = run.profile, run.compiled, run.comparison
    probed = Usage(
        lm_calls=round(profile.calls_per_run * profile.probed),
        prompt_tokens=round(profile.prompt_tokens * profile.probed),
        completion_tokens=round(profile.completion_tokens * profile.probed),
    )
    lines = [Cost("probe", probed, None, physical_kept=False)]
    if compiled.usage.lm_calls:
        lines.append(Cost(f"compile ({compiled.optimizer})", compiled.usage, compiled.seconds))
    sealed = comparison.sealed
    reports = {
        "candidate on validation": comparison.candidate_val,
        "champion on validation": comparison.champion_val,
        "candidate on the sealed test": sealed and sealed.candidate,
        "champion on the sealed test": sealed and sealed.champion,
    }
    for step, report in reports.items():
        if report is not None:
            lines.append(Cost(step, report.usage, report.seconds))
            if report.judge_usage.lm_calls:
                lines.append(Cost(f"judging the {step}", report.judge_usage, None))
    total = sum((line.usage for line in lines), Usage())
    return (*lines, Cost("all", total, sum(line.seconds or 0.0 for line in lines)))
