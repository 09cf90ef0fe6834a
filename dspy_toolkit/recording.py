"""What one run of the steps found, and what is written down of it: parameters, numbers, a plot.

Not covered: where it is written (`dspy_toolkit.tracking`), and when (`dspy_toolkit.workbench`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.challenge import Challenge
from dspy_toolkit.datasets import Dataset
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.plots import comparison_plot
from dspy_toolkit.project import Project, ProjectRef
from dspy_toolkit.store import Value

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


class Run(Value):
    """What the steps of one optimization found, up to the decision."""

    name: str
    """For people, as MLflow shows it."""
    ref: ProjectRef
    dataset: Dataset
    profile: Profile
    choice: Choice
    compiled: Compiled
    challenge: Challenge


def parameters_of(run: Run, project: Project, settings: Settings) -> dict[str, Any]:
    """What was asked for, and what the result depends on."""
    return {
        **parameters_of_compiling(run.ref, run.choice, project, settings),
        "champion_before": run.ref.champion.version,
    }


def parameters_of_compiling(ref: ProjectRef, choice: Choice, project: Project, settings: Settings) -> dict[str, Any]:
    """The same, of what comes before a champion is looked at."""
    return {
        "optimizer": choice.optimizer,
        "settings": choice.settings,
        "budget": choice.budget,
        "model": ref.program.model,
        "reflection_model": ref.program.reflection_model,
        "seed": settings.optimize.seed,
        "data": ref.data.fingerprint,
        "program": ref.program.fingerprint,
        "metric": name_of(project.metric),
    }


def measures_of(run: Run) -> dict[str, Any]:
    """What was measured; of the sealed test only when it was opened."""
    comparison = run.challenge.comparison
    measures = measures_of_compiling(run.profile, run.compiled)
    if comparison is not None:
        measures |= {
            "sealed_candidate": comparison.candidate.mean,
            "sealed_champion": comparison.champion.mean,
            "sealed_delta": comparison.delta,
            "sealed_delta_low": comparison.low,
            "sealed_delta_high": comparison.high,
            "sealed_looks": comparison.looks,
            "alpha_left": comparison.alpha_left,
            "tokens_ratio": comparison.tokens_ratio,
        }
        measures |= {f"reference_{name.replace(' ', '_')}": mean for name, mean in run.challenge.references.items()}
    return measures


def measures_of_compiling(profile: Profile, compiled: Compiled) -> dict[str, Any]:
    """What was measured up to the compiled program."""
    return {
        "probe_baseline": profile.baseline,
        "val_baseline": compiled.val_baseline,
        "val_candidate": compiled.val_mean,
        "trial_val_mean": [trial.val_mean for trial in compiled.trials],
        "compile_lm_calls": compiled.lm_calls,
        "compile_physical_calls": compiled.physical_calls,
        "compile_prompt_tokens": compiled.prompt_tokens,
        "compile_completion_tokens": compiled.completion_tokens,
        "compile_seconds": compiled.seconds,
    }


def plot_of(run: Run, project: Project) -> bytes | None:
    """The comparison as a PNG; None when the sealed rows were not opened."""
    if (comparison := run.challenge.comparison) is None:
        return None
    return comparison_plot(
        comparison.candidate,
        comparison.champion,
        comparison.delta,
        comparison.low,
        comparison.high,
        level=comparison.level,
        title=f"{project.name}: {run.challenge.outcome}",
        metric=name_of(project.metric),
        against=f"version {run.ref.champion.version}",
    )
