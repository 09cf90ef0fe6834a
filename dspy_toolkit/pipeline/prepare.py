"""Checking the rows, and splitting them into train, val and sealed."""

from __future__ import annotations

from dspy_toolkit import datasets
from dspy_toolkit.datasets import Dataset
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.project import DataPart, data_part, refuse_changed
from dspy_toolkit.project.signatures import fields_of


def prepare(context: Context, data: DataPart) -> Dataset:
    """Read, check and split the rows into three objects of the store.

    Args:
        data: the rows as `resolve` found them; of rows in memory only the names.

    Raises:
        DatasetError: a row or a column does not fit; each is named.
        ProjectError: the file, or what is asked of it, has changed since the run began.
    """
    project, settings = context.project, context.settings
    rows = context.records
    if rows is None:
        content = datasets.read_file(project.data_path)
        refuse_changed(data, lambda: data_part(project, settings, content))
        frame = datasets.read_rows(project.data_path, content)
    else:
        frame = datasets.from_records(rows)
    return datasets.prepare(
        frame,
        project.dataset,
        fields_of(project.build()),
        context.store,
        drop_bad_rows=settings.data.drop_bad_rows,
        near_duplicate=settings.data.near_duplicate,
        # Rows in memory belong to no file whose rows could be remembered.
        remembered=settings.path("splits", f"{data.project}.jsonl") if rows is None else None,
        origin=str(project.dataset.source),
    )
