"""One task under one seed: the profile, the baseline, then each system, all on the same splits.

A system is an optimizer alone, `race` or `auto`. Each is compiled on train and val, and its program is run on the sealed
rows, beside the baseline. These are the rows of a benchmark: they are opened once for each system, directly, with no
ledger; the home is one of the benchmark's own.

Costs are logical LM calls, which no cache changes. Physical calls and seconds are those of systems that ran one after the
other with one cache of replies: the later ones find some replies there.

Not covered: the gate. It asks for more than is shown here, since it also bounds how often it is wrong over many nights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.optimizers.rows import BASELINE, PROFILE, Kept, Row
from benchmarks.optimizers.tasks import Task
from dspy_toolkit.datasets import Dataset
from dspy_toolkit.errors import OptimizerError, ToolkitError
from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.optimizers.states import fill
from dspy_toolkit.pipeline.compare import compare_reports
from dspy_toolkit.pipeline.compile import compile as compile_step
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.pipeline.unchanged import program_part
from dspy_toolkit.project import DataPart
from dspy_toolkit.run import CompileInput, SealedTest, SearchInput, SelectInput
from dspy_toolkit.settings import Settings

if TYPE_CHECKING:
    import dspy

ALPHA = 0.025
"""One-sided: the intervals are 95 % intervals."""

Say = Callable[[str], None]


def with_seed(settings: Settings, seed: int) -> Settings:
    """`settings` with another seed of the search; the splits stay."""
    return settings.model_copy(update={"optimize": settings.optimize.model_copy(update={"seed": seed})})


def measure(
    task: Task, settings: Settings, budget: str, systems: Sequence[str], kept: Kept, say: Say
) -> Iterator[list[Row]]:
    """The rows of one task under the seed of `settings`: the profile's, the baseline's, then each system's.

    Args:
        budget: as `--budget` takes it: `light`, `medium`, `heavy` or a number of LM calls.
        systems: some of `rows.SYSTEMS`.
        kept: where rows are kept, and found again.
        say: told what is going on.

    Raises:
        ToolkitError: the rows, the profile or the baseline cannot be had. What a system fails with is a row.
    """
    context = Context(task.project, settings, records=task.records(settings))
    yield from measure_context(context, budget, systems, kept, say)


def measure_context(
    context: Context, budget: str, systems: Sequence[str], kept: Kept, say: Say, name: str | None = None
) -> Iterator[list[Row]]:
    """The same in a context, as `name` or under the project's name."""
    name, seed = name or context.project.name, context.settings.optimize.seed
    dataset = prepare(context, DataPart(project=context.project.name, location="", fingerprint=""))
    program = program_part(context)
    search = SearchInput(program=program, train=dataset.train, val=dataset.val)
    origin = (name, program.fingerprint, dataset.model_dump(mode="json"), budget)
    say(f"{name}, seed {seed}: profile")
    profile = probe(context, search)
    yield [_row(name, seed, *entry) for entry in profile_entries(profile)]
    say(f"{name}, seed {seed}: {BASELINE}")
    baseline = run_sealed(context, context.project.build(), dataset)
    yield [_row(name, seed, *entry) for entry in baseline_entries(baseline)]
    for system in systems:
        try:
            choice = select(context, SelectInput(**dict(search), profile=profile, optimizer=system, budget=budget))
        except OptimizerError as error:
            yield [_row(name, seed, system, "impossible", None, "", str(error))]
            continue
        # What another rule would choose, or with other settings, is measured anew.
        key = (*origin, system, choice.settings.model_dump(mode="json"))
        rows = kept.find(*key)
        if rows is None:
            say(f"{name}, seed {seed}: {system}")
            given = CompileInput(**dict(search), choice=choice, profile=profile)
            entries = _system(context, dataset, baseline, system, given)
            rows = [_row(name, seed, *entry) for entry in entries]
            # What failed costs nothing to try again, and may run the next time.
            if rows[0]["value"] is not None:
                kept.keep(rows, *key)
        yield rows


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
        compared = compare_reports(report, baseline, context.store, alpha=ALPHA, looks=1, alpha_left=1.0)
    except ToolkitError as error:  # isolation boundary: one system of a benchmark
        return [(system, "failed", None, "", f"{type(error).__name__}: {error}")]
    return system_entries(system, given.choice, compiled, compared)


def system_entries(system: str, choice: Choice, compiled: Compiled, compared: SealedTest) -> list[Entry]:
    """The numbers of one system."""
    taken = f"took {choice.optimizer}: {choice.reason}" if system == "auto" else compiled.summary
    # A race says how its winner did on rows that no arm chose by.
    rows = compiled.arms[0].holdout_rows if compiled.arms else choice.val_rows
    entries: list[Entry] = [
        (system, "val", compiled.val_mean, "share", taken),
        (system, "val_baseline", compiled.val_baseline, "share", ""),
        (system, "val_rows", rows, "rows", ""),
        (system, "sealed", compared.candidate.mean, "share", "" if compiled.changed else "unchanged"),
        (system, "delta", compared.delta, "share", compared.test),
        (system, "low", compared.low, "share", ""),
        (system, "high", compared.high, "share", ""),
        (system, "predicted", choice.predicted_lm_calls, "calls", ""),
        (system, "lm_calls", compiled.usage.lm_calls, "calls", "the budget ran out" if compiled.exhausted else ""),
        (system, "physical_calls", compiled.usage.physical_calls, "calls", ""),
        (system, "seconds", compiled.seconds, "s", ""),
        (system, "candidates", max(len(compiled.trials) - 1, 0), "", ""),
        (system, "tokens_ratio", compared.tokens_ratio, "", "prompt tokens over those of the baseline"),
    ]
    return entries + [
        (system, f"arm:{arm.name}", arm.mean, "share", f"{arm.verdict}: {arm.reason}") for arm in compiled.arms
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
