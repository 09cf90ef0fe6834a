"""How much the format of the messages alone changes, before any search: `python -m benchmarks.optimizers.formats`.

Each task's program as it is, on the same sealed rows in each format: the mean score, and the prompt's tokens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.optimizers.measuring import run_sealed, with_seed
from benchmarks.optimizers.tasks import NAMES, find_task
from dspy_toolkit.datasets import examples
from dspy_toolkit.lm.formats import FORMAT_NAMES
from dspy_toolkit.optimizers.generators.formats import in_format
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.project import DataPart
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.settings import Settings, load_settings


def rows(name: str, settings: Settings, demonstrations: int, most: int) -> Iterator[tuple[str, ...]]:
    """(task, format, mean score, prompt tokens a row) of each format that the task's outputs have."""
    task = find_task(name)
    spec = task.project.dataset.model_copy(update={"seed": settings.optimize.seed})
    context = Context(replace(task.project, dataset=spec), settings, records=task.records(settings))
    dataset = prepare(context, DataPart(project=name, location="", fingerprint=""))
    sealed = context.store.read_frame(dataset.sealed)
    dataset = dataset.model_copy(update={"sealed": context.store.save_frame(sealed.iloc[:most])})
    program = context.project.build()
    if demonstrations and len(program.predictors()) == 1:
        train = examples(context.store.read_frame(dataset.train), spec, fields_of(program))
        program.predictors()[0].demos = balanced(train, demonstrations, seed=settings.optimize.seed)
    seen = set()
    for format_ in FORMAT_NAMES:
        made = in_format(program, program, format_, local=True)
        asked = tuple(getattr(predictor, "format", None) for predictor in made.predictors())
        if asked in seen:  # no grammar: the program is as it was
            continue
        seen.add(asked)
        report = run_sealed(context, made, dataset)
        yield name, format_, f"{report.mean:.1%}", f"{report.usage.prompt_tokens / report.n:.0f}", f"{report.n}"


def main() -> int:
    """Print one line a task and format."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers.formats", description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["router", "record", "minutes", "cause", "title"], choices=NAMES)
    parser.add_argument("--demonstrations", type=int, default=0, help="labelled ones in each prompt")
    parser.add_argument("--rows", type=int, default=200, help="sealed rows at most")
    arguments = parser.parse_args()
    print(f"{'task':10} {'format':8} {'score':>8} {'tokens':>7} {'rows':>5}")
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as home:
        settings = with_seed(load_settings().model_copy(update={"home": Path(home)}), 0)
        for name in arguments.tasks:
            for task, format_, score, tokens, count in rows(name, settings, arguments.demonstrations, arguments.rows):
                print(f"{task:10} {format_:8} {score:>8} {tokens:>7} {count:>5}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
