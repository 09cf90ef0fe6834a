"""One task under one seed: profile, baseline, classical reference, then each system, all on the same splits.

A system is an optimizer alone, `race` or `auto`. Each is compiled on train and val, and its program is run on the sealed
rows, beside the baseline. These are the rows of a benchmark: they are opened once for each system, directly, with no
ledger; the home is one of the benchmark's own.

Costs are logical LM calls, which no cache changes. Physical calls and seconds are those of systems that ran one after the
other with one cache of replies: the later ones find some replies there.

Not covered: the gate. It asks for more than is shown here, since it also bounds how often it is wrong over many nights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.optimizers.classical import classical
from benchmarks.optimizers.gains import FAILED, IMPOSSIBLE
from benchmarks.optimizers.rows import BASELINE, CLASSICAL, PROFILE, Kept, Row
from benchmarks.optimizers.tasks import Task
from dspy_toolkit.datasets import Dataset
from dspy_toolkit.errors import OptimizerError, ToolkitError
from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.gate.evidence import Evidence
from dspy_toolkit.gate.evidence import compare as compare_scores
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.optimizers.states import fill
from dspy_toolkit.pipeline.compile import compile as compile_step
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.pairing import paired, tokens_ratio
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.pipeline.unchanged import program_part
from dspy_toolkit.project import DataPart
from dspy_toolkit.run import CompileInput, SearchInput, SelectInput
from dspy_toolkit.settings import Settings

if TYPE_CHECKING:
    import dspy

ALPHA = 0.025
"""One-sided: the intervals are 95 % intervals."""

Say = Callable[[str], None]


class Batch(NamedTuple):
    """Rows that came at once."""

    rows: list[Row]
    system: str = ""
    """The system that they are all of; empty for what precedes the systems."""
    measured: bool = False
    """Whether the system was measured now, and neither kept nor stopped before it began."""


def with_seed(settings: Settings, seed: int) -> Settings:
    """`settings` with another seed of the search, by which tasks draw their rows too."""
    return settings.model_copy(update={"optimize": settings.optimize.model_copy(update={"seed": seed})})


def measure(
    task: Task, settings: Settings, budget: str, systems: Sequence[str], kept: Kept, say: Say
) -> Iterator[Batch]:
    """The rows of one task under the seed of `settings`: profile, baseline and reference, then each system.

    Args:
        budget: as `--budget` takes it: `light`, `medium`, `heavy` or a number of LM calls.
        systems: some of `rows.SYSTEMS`.
        kept: where rows are kept, and found again.
        say: told what is going on.

    Raises:
        ToolkitError: the rows, the profile or the baseline cannot be had. What a system fails with is a row.
    """
    # Where a seed draws no new rows, it divides them anew at least.
    spec = task.project.dataset.model_copy(update={"seed": settings.optimize.seed})
    context = Context(replace(task.project, dataset=spec), settings, records=task.records(settings))
    yield from measure_context(context, budget, systems, kept, say)


def measure_context(
    context: Context, budget: str, systems: Sequence[str], kept: Kept, say: Say, name: str | None = None
) -> Iterator[Batch]:
    """The same in a context, as `name` or under the project's name."""
    name, seed = name or context.project.name, context.settings.optimize.seed
    dataset = prepare(context, DataPart(project=context.project.name, location="", fingerprint=""))
    program = program_part(context)
    search = SearchInput(program=program, train=dataset.train, val=dataset.val)
    origin = (name, seed, program.fingerprint, dataset.model_dump(mode="json"), budget)
    say(f"{name}, seed {seed}: profile")
    profile = probe(context, search)
    yield Batch([_row(name, seed, *entry) for entry in profile_entries(profile)])
    say(f"{name}, seed {seed}: {BASELINE}")
    baseline = run_sealed(context, context.project.build(), dataset)
    yield Batch([_row(name, seed, *entry) for entry in baseline_entries(baseline)])
    method, reference = classical(context, dataset)
    yield Batch([_row(name, seed, CLASSICAL, "sealed", reference, "share", method)])
    for system in systems:
        try:
            choice = select(context, SelectInput(**dict(search), profile=profile, optimizer=system, budget=budget))
        except OptimizerError as error:
            yield Batch([_row(name, seed, system, IMPOSSIBLE, None, "", str(error))], system)
            continue
        # What another rule would choose, or with other settings, is measured anew.
        key = (*origin, system, choice.settings.model_dump(mode="json"))
        rows = kept.find(*key)
        measured = rows is None
        if rows is None:
            say(f"{name}, seed {seed}: {system}")
            given = CompileInput(**dict(search), choice=choice, profile=profile)
            entries = _system(context, dataset, baseline, system, given)
            rows = [_row(name, seed, *entry) for entry in entries]
            # What failed costs nothing to try again, and may run the next time.
            if rows[0]["value"] is not None:
                kept.keep(rows, *key)
        yield Batch(rows, system, measured)


Entry = tuple[str, str, float | None, str, str]
"""system, measure, value, unit, note."""


def profile_entries(profile: Profile) -> list[Entry]:
    """What the profile found and cost: the runs, and the one try at reflection."""
    calls = profile.probed * profile.calls_per_run + 1
    reflector = f"{'usable' if profile.reflector_ok else 'not usable'}: {profile.reflector_note}"
    return [
        (PROFILE, "lm_calls", calls, "calls", reflector),
        (PROFILE, "train", profile.train, "rows", ""),
        (PROFILE, "val", profile.val, "rows", ""),
    ]


def baseline_entries(report: Report) -> list[Entry]:
    """The baseline on the sealed rows."""
    return [
        (BASELINE, "sealed", report.mean, "share", ""),
        (BASELINE, "sealed_low", report.low, "share", ""),
        (BASELINE, "sealed_high", report.high, "share", ""),
        (BASELINE, "sealed_rows", report.n, "rows", ""),
        (BASELINE, "parse_failures", report.parse_failures, "rows", ""),
    ]


def _system(context: Context, dataset: Dataset, baseline: Report, system: str, given: CompileInput) -> list[Entry]:
    try:
        compiled = compile_step(context, given)
        better = fill(context.project.build(), context.store.read_json(compiled.program))
        report = run_sealed(context, better, dataset)
        shown = compared(context, report, baseline)
    except ToolkitError as error:  # isolation boundary: one system of a benchmark
        return [(system, FAILED, None, "", f"{type(error).__name__}: {error}")]
    return system_entries(system, given.choice, compiled, report.mean, shown)


def compared(context: Context, report: Report, baseline: Report) -> Evidence:
    """The difference of two reports on the sealed rows, with its interval."""
    scores = paired(context.store, report, baseline)
    ratio = tokens_ratio(report, baseline)
    return compare_scores(
        scores.candidate, scores.others[0], scores.groups, alpha=ALPHA, looks=1, alpha_left=1.0, tokens_ratio=ratio
    )


def system_entries(system: str, choice: Choice, compiled: Compiled, sealed: float, shown: Evidence) -> list[Entry]:
    """The numbers of one system, whose mean on the sealed rows is `sealed`."""
    entries: list[Entry] = [
        (system, "val", compiled.val_mean, "share", compiled.summary),
        (system, "val_baseline", compiled.val_baseline, "share", ""),
        (system, "val_rows", compiled.rows, "rows", ""),
        (system, "sealed", sealed, "share", "" if compiled.changed else "unchanged"),
        (system, "delta", shown.delta, "share", shown.test),
        (system, "low", shown.low, "share", ""),
        (system, "high", shown.high, "share", ""),
        (system, "budget", choice.lm_calls, "calls", choice.budget),
        (system, "predicted", choice.predicted_lm_calls, "calls", ""),
        (system, "lm_calls", compiled.usage.lm_calls, "calls", "the budget ran out" if compiled.exhausted else ""),
        (system, "physical_calls", compiled.usage.physical_calls, "calls", ""),
        (system, "seconds", compiled.seconds, "s", ""),
        (system, "candidates", max(len(compiled.trials) - 1, 0), "", ""),
        (system, "tokens_ratio", shown.tokens_ratio, "", "prompt tokens over those of the baseline"),
    ]
    return entries + [
        (system, f"generator:{each.name}", each.mean, "share", f"{each.verdict}: {each.reason}")
        for each in compiled.generators
    ]


def run_sealed(context: Context, program: dspy.Module, dataset: Dataset) -> Report:
    """Score a program on the sealed rows. A benchmark's: no ledger is asked."""
    return evaluate(
        program,
        context.store.read_frame(dataset.sealed),
        context.project.dataset,
        context.project.metric,
        split="sealed",
        lm=context.connection.lm,
        adapter=context.connection.adapter,
        store=context.store,
        threads=context.settings.optimize.threads,
    )


def _row(task: str, seed: int, system: str, measure: str, value: Any, unit: str, note: str) -> Row:
    return {
        "task": task, "seed": seed, "system": system, "measure": measure, "value": value, "unit": unit, "note": note,
    }  # fmt: skip
