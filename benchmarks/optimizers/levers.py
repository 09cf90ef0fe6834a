"""Which lever helps when: tasks × levers × numbers of training rows.

    python -m benchmarks.optimizers.levers [--tasks NAME …] [--levers NAME …] [--rows 40 160 500] [--calls 240]
                                           [--minutes 10] [--seed 0] [--home FOLDER] [--picture PATH]

A lever is a pool of the formats and of the generators that are its own, with `--calls` LM calls to spend beside what the race of
trainings counts as that `--minutes` are enough for. `all` has them all. A cell is the mean of the program that the pool ended with, on the sealed rows of the benchmark, with
its 95 % interval; beside it stand the baseline and the classical reference that was fitted to the same training rows.

A training split with fewer rows than asked gives what it has. With `--home` a run that was cut off goes on there, and cells that
were measured before are printed again; the picture is made of all that is printed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.optimizers.rows import BASELINE, CLASSICAL, Kept
from benchmarks.optimizers.tasks import NAMES

if TYPE_CHECKING:
    from dspy_toolkit.datasets import Dataset
    from dspy_toolkit.optimizers import Profile
    from dspy_toolkit.pipeline.context import Context
    from dspy_toolkit.settings import Settings

LEVERS: dict[str, tuple[str, ...]] = {
    "formats": ("formats",),
    "labels": ("labels", "formats"),
    "knn": ("knn", "formats"),
    "finetune": ("finetune", "formats"),
    "together": ("together", "labelled", "formats"),
    "all": ("finetune", "labels", "knn", "formats"),
}
"""Lever → the generators of its pool."""

Cell = dict[str, Any]
"""task, rows, lever, mean, low, high, note; of a lever also calls, seconds and tokens (of a prompt, against the baseline's)."""
Say = Callable[[str], None]


def cells(
    name: str,
    levers: Sequence[str],
    sizes: Sequence[int],
    calls: int,
    settings: Settings,
    kept: Kept,
    say: Say,
    minutes: float = 10.0,
) -> Iterator[Cell]:
    """The cells of one task as they come: for each number of training rows baseline, reference and levers."""
    from benchmarks.optimizers.measuring import with_seed
    from benchmarks.optimizers.tasks import find_task
    from dspy_toolkit.optimizers.sampling import sample_rows
    from dspy_toolkit.pipeline.context import Context
    from dspy_toolkit.pipeline.prepare import prepare
    from dspy_toolkit.project import DataPart

    task, seed = find_task(name), settings.optimize.seed
    spec = task.project.dataset.model_copy(update={"seed": seed})
    context = Context(replace(task.project, dataset=spec), with_seed(settings, seed), records=task.records(settings))
    whole = prepare(context, DataPart(project=name, location="", fingerprint=""))
    train = context.store.read_frame(whole.train)
    for rows in dict.fromkeys(min(size, len(train)) for size in sizes):
        part = context.store.save_frame(sample_rows(train, rows))
        dataset = whole.model_copy(update={"train": part})
        yield from _of_one_size(
            context, dataset, rows, levers, calls, kept, lambda what: say(f"{name}, {what}"), minutes
        )


def _of_one_size(
    context: Context,
    dataset: Dataset,
    rows: int,
    levers: Sequence[str],
    calls: int,
    kept: Kept,
    say: Say,
    minutes: float = 10.0,
) -> Iterator[Cell]:
    from benchmarks.optimizers.classical import classical
    from benchmarks.optimizers.measuring import run_sealed
    from dspy_toolkit.pipeline.probe import probe
    from dspy_toolkit.pipeline.unchanged import program_part
    from dspy_toolkit.run import SearchInput

    about = {"task": context.project.name, "rows": rows}
    say(f"{rows} rows: baseline")
    baseline = run_sealed(context, context.project.build(), dataset)
    yield about | {"lever": BASELINE, "mean": baseline.mean, "low": baseline.low, "high": baseline.high, "note": ""}
    method, reference = classical(context, dataset)
    yield about | {"lever": CLASSICAL, "mean": reference, "low": None, "high": None, "note": method}
    search = SearchInput(program=program_part(context), train=dataset.train, val=dataset.val)
    profile: Profile | None = None
    for lever in levers:
        key = (search.program.fingerprint, dataset.model_dump(mode="json"), lever, LEVERS[lever], calls, minutes)
        found = kept.find(*key)
        if found is None:
            if profile is None:
                say(f"{rows} rows: profile")
                profile = probe(context, search)
            say(f"{rows} rows: {lever}")
            measured = _cell(context, dataset, search, profile, lever, calls, baseline, minutes)
            found = [about | measured]
            if measured["mean"] is not None:
                kept.keep(found, *key)
        yield from found


def _cell(
    context: Context,
    dataset: Dataset,
    search: Any,
    profile: Profile,
    lever: str,
    calls: int,
    baseline: Any,
    minutes: float,
) -> Cell:
    from benchmarks.optimizers.measuring import run_sealed
    from dspy_toolkit.errors import ToolkitError
    from dspy_toolkit.optimizers import find_budget, select
    from dspy_toolkit.optimizers.choice import Infeasible
    from dspy_toolkit.optimizers.generators.catalog import GENERATORS
    from dspy_toolkit.optimizers.states import fill
    from dspy_toolkit.pipeline.compile import compile as compile_step
    from dspy_toolkit.pipeline.pairing import tokens_ratio
    from dspy_toolkit.run import CompileInput

    nothing = {"lever": lever, "mean": None, "low": None, "high": None}
    choice = select(profile, "race", find_budget(str(calls)))
    costs = {name: GENERATORS[name].cost(profile, choice.settings) for name in LEVERS[lever]}  # pyright: ignore[reportArgumentType]
    able = {name: cost for name, cost in costs.items() if not isinstance(cost, Infeasible)}
    if lever != "all" and (reason := getattr(costs[LEVERS[lever][0]], "reason", None)):
        return nothing | {"note": reason}
    trained = {"finetune", "together"} & able.keys()
    trainings = _training_calls(profile, minutes) if trained else 0
    chosen = choice.settings.model_copy(update={"generators": tuple(able)})
    choice = choice.model_copy(update={"settings": chosen, "lm_calls": calls + trainings})
    began = time.monotonic()
    try:
        compiled = compile_step(context, CompileInput(**dict(search), choice=choice, profile=profile))
        seconds = time.monotonic() - began
        report = run_sealed(context, fill(context.project.build(), context.store.read_json(compiled.program)), dataset)
    except ToolkitError as error:  # isolation boundary: one cell of a benchmark
        return nothing | {"note": f"{type(error).__name__}: {error}"}
    won = next((each.reason for each in compiled.generators if each.verdict == "won"), "")
    return {
        "lever": lever,
        "mean": report.mean,
        "low": report.low,
        "high": report.high,
        "note": won,
        "calls": compiled.usage.lm_calls,
        "seconds": seconds,
        "tokens": tokens_ratio(report, baseline),
    }


def _training_calls(profile: Profile, minutes: float) -> int:
    """What the dearest race of trainings counts as that is predicted to take no longer."""
    from dspy_toolkit.optimizers.generators import trainings

    fitting = [plan for plan in trainings.PLANS if trainings.seconds(profile, plan) <= 60 * minutes]
    return trainings.calls(profile, (*fitting, trainings.PLANS[-1])[0])


HEADER = f"{'task':10} {'rows':>5} {'lever':10} {'sealed':>7} {'95 % interval':>16} {'calls':>6} {'minutes':>8} {'tokens':>7}  what"


def line(cell: Cell) -> str:
    """One cell for people."""
    value, interval = "–", ""
    if cell["mean"] is not None:
        value = f"{cell['mean']:.1%}"
    if cell["low"] is not None:
        interval = f"{cell['low']:.1%} … {cell['high']:.1%}"
    cost = f"{cell['calls']:>6} {cell['seconds'] / 60:>8.1f} {cell['tokens']:>7.2f}" if "calls" in cell else " " * 23
    return f"{cell['task']:10} {cell['rows']:>5} {cell['lever']:10} {value:>7} {interval:>16} {cost}  {cell['note']}"


def draw(found: Sequence[Cell], path: Path) -> None:
    """A picture: for each task the mean on the sealed rows over the training rows, one line a lever."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(cell["task"] for cell in found))
    figure = Figure(figsize=(4.2 * len(tasks) + 1.6, 3.8))
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)
    names = [BASELINE, CLASSICAL, *LEVERS]
    colors = dict(zip(names, ["#888888", "#222222", *colormaps["tab10"].colors], strict=False))  # pyright: ignore[reportAttributeAccessIssue]
    for place, (task, ax) in enumerate(zip(tasks, axes[0], strict=True)):
        for shift, name in enumerate(names):
            own = [c for c in found if c["task"] == task and c["lever"] == name and c["mean"] is not None]
            if not own:
                continue
            # A little apart, so that one interval does not hide another.
            at = [cell["rows"] * (1 + 0.02 * (shift - len(names) / 2)) for cell in own]
            style = {"marker": "o", "color": colors[name], "label": name, "linewidth": 1.5, "markersize": 4}
            style |= {"linestyle": "--"} if name in (BASELINE, CLASSICAL) else {}
            means = [100 * cell["mean"] for cell in own]
            if any(cell["low"] is None for cell in own):
                ax.plot(at, means, **style)
                continue
            below = [100 * (cell["mean"] - cell["low"]) for cell in own]
            above = [100 * (cell["high"] - cell["mean"]) for cell in own]
            ax.errorbar(at, means, yerr=[below, above], capsize=2, elinewidth=0.8, **style)
        sizes = sorted({cell["rows"] for cell in found if cell["task"] == task})
        ax.set_xscale("log")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.set(title=task, xlabel="training rows", ylim=(0, 100))
        ax.grid(axis="y", linewidth=0.4, alpha=0.6)
        if place == 0:
            ax.set_ylabel("sealed rows, mean score in %")
    handles, labels = next(iter(axes[0][:1])).get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.3 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=150)


def main() -> int:
    """Measure, print and draw; the exit code is 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers.levers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", nargs="+", default=["router", "minutes", "record", "title"], choices=NAMES)
    parser.add_argument("--levers", nargs="+", default=list(LEVERS), choices=list(LEVERS))
    parser.add_argument("--rows", nargs="+", type=int, default=[40, 160, 500], metavar="N", help="training rows")
    parser.add_argument(
        "--calls", type=int, default=240, help="LM calls of each lever, beside what a training counts as"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="that trainings may take, as predicted")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and the searches")
    parser.add_argument("--home", type=Path, help="keep everything there; a temporary folder by default")
    parser.add_argument("--picture", type=Path, help="draw there, as PNG or SVG by its ending")
    arguments = parser.parse_args()

    from benchmarks.optimizers.measuring import with_seed
    from dspy_toolkit.settings import load_settings

    # A candidate that is left out is a number of this table, not news for the terminal.
    logging.getLogger("dspy_toolkit").setLevel(logging.ERROR)
    found: list[Cell] = []
    interrupted = False
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as folder:
        home = (arguments.home or Path(folder)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        settings, kept = with_seed(load_settings(home=home), arguments.seed), Kept(home / "levers.jsonl")
        began = time.monotonic()

        def say(what: str) -> None:
            print(f"{time.monotonic() - began:>8.0f} s  {what}", file=sys.stderr, flush=True)

        try:
            for name in arguments.tasks:
                for cell in cells(
                    name, arguments.levers, arguments.rows, arguments.calls, settings, kept, say, arguments.minutes
                ):
                    found.append(cell)
                    print(line(cell), flush=True)
        except KeyboardInterrupt:
            interrupted = True
            print("Interrupted. Started again with the same --home, it goes on.", file=sys.stderr)
    if arguments.picture is not None and found:
        draw(found, arguments.picture)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
