"""The built-in router on rows of its own: its training and validation rows, split anew.

Its sealed rows are not read. Here each optimizer's winner meets the sealed rows of this benchmark, which is more openings
than a project's ledger would grant; the project's own sealed rows stay sealed.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.optimizers.tasks import Record
from dspy_toolkit.datasets import DatasetSpec, Fractions
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.project import Project
from dspy_toolkit.projects.router import project as built_in
from dspy_toolkit.run import Request
from dspy_toolkit.settings import Settings

project: Project = replace(
    built_in,
    dataset=DatasetSpec(
        source="router",
        inputs=built_in.dataset.inputs,
        outputs=built_in.dataset.outputs,
        fractions=Fractions(train=0.5, val=0.25, sealed=0.25),
    ),
    reference_rules={},
)


def records(settings: Settings) -> list[Record]:
    """The rows that the built-in project may learn from and choose by."""
    context = Context(built_in, settings)
    dataset = prepare(context, resolve(context, Request(location=built_in.name)).data)
    frames = (context.store.read_frame(part) for part in (dataset.train, dataset.val))
    return [
        {"request": str(row["request"]), "project": str(row["project"])}
        for frame in frames
        for row in frame[["request", "project"]].to_dict("records")
    ]
