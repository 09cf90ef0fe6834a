"""What one run of the steps found, and what is written down of it: parameters, numbers, a plot.

Not covered: where it is written (`dspy_toolkit.tracking`), when (`dspy_toolkit.workbench`), and reading it back
(`dspy_toolkit.history`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from dspy_toolkit.challenge import Challenge
from dspy_toolkit.datasets import Dataset
from dspy_toolkit.datasets.checking import choices_of
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.plots import comparison_plot
from dspy_toolkit.project import Project, ProjectRef
from dspy_toolkit.signatures import fields_of
from dspy_toolkit.store import Value, digest

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
        **parameters_of_compiling(run.ref, run.dataset, run.profile, run.choice, run.compiled, project, settings),
        "champion_before": run.ref.champion.version,
    }


def parameters_of_compiling(
    ref: ProjectRef,
    dataset: Dataset,
    profile: Profile,
    choice: Choice,
    compiled: Compiled,
    project: Project,
    settings: Settings,
) -> dict[str, Any]:
    """The same, of what comes before a champion is looked at."""
    return {
        "optimizer": compiled.optimizer,
        "winner": compiled.arms[0].name if compiled.arms else compiled.optimizer,
        "chosen": choice.optimizer,
        "search": search_of(ref, dataset, choice),
        "settings": choice.settings,
        "budget": choice.budget,
        "start": ref.start.name if ref.start else "",
        "task": task_kind(project),
        "profile": profile,
        "model": ref.program.model,
        "reflection_model": ref.program.reflection_model,
        "seed": settings.optimize.seed,
        "data": ref.data.fingerprint,
        "program": ref.program.fingerprint,
        "metric": name_of(project.metric),
    }


def search_of(ref: ProjectRef, dataset: Dataset, choice: Choice) -> str:
    """sha256 of all that a compilation depends on: runs that share it made the same search, from the cache or not."""
    return digest(
        ref.program.fingerprint,
        [dataset.train.sha256, dataset.val.sha256],
        [choice.optimizer, choice.settings, choice.lm_calls],
        ref.start.state.sha256 if ref.start else "",
    )


def task_kind(project: Project) -> str:
    """What the program is to answer: `choice`, `number` or `text`; `record` for several outputs, a list or a model; `open`
    where the rows hold no answer.
    """
    fields, outputs = fields_of(project.build()), project.dataset.outputs
    if len(outputs) != 1:
        return "record" if outputs else "open"
    kind = fields.get(outputs[0], str)
    if choices_of(kind) is not None:
        return "choice"
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is str:
        return "text"
    return "number" if kind in (int, float) else "record"


def measures_of(run: Run) -> dict[str, Any]:
    """What was measured; of the sealed test only when it was opened."""
    comparison = run.challenge.comparison
    measures = measures_of_compiling(run.profile, run.choice, run.compiled)
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


def measures_of_compiling(profile: Profile, choice: Choice, compiled: Compiled) -> dict[str, Any]:
    """What was measured up to the compiled program."""
    return {
        "probe_baseline": profile.baseline,
        # Where nothing was scored they would read as a program that answers nothing rightly.
        "val_baseline": compiled.val_baseline if compiled.trials else None,
        "val_candidate": compiled.val_mean if compiled.trials else None,
        "val_gain": compiled.val_mean - compiled.val_baseline if compiled.trials else None,
        "trial_val_mean": [trial.val_mean for trial in compiled.trials],
        "predicted_lm_calls": choice.predicted_lm_calls,
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
