"""Checking the rows, and splitting them into train, val and sealed."""

from __future__ import annotations

from pathlib import Path

from dspy_toolkit import datasets
from dspy_toolkit.datasets import Dataset, SplitRows
from dspy_toolkit.datasets.placements import recall
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.project import DataPart, data_part, refuse_changed
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.settings import Settings


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
        remembered=placements_path(settings, project.name) if rows is None else None,
        origin=str(project.dataset.source),
    )


def look_at_rows(context: Context, path: Path | None = None, *, drop_bad_rows: bool | None = None) -> SplitRows:
    """The rows with the splits that `prepare` would give them. Nothing is written.

    Args:
        path: a file in place of the project's.
        drop_bad_rows: as in `prepare`; the settings' by default.

    Raises:
        DatasetError: as `prepare`.
    """
    project, settings = context.project, context.settings
    return datasets.split_rows(
        datasets.read_rows(path or project.data_path),
        project.dataset,
        fields_of(project.build()),
        recall(placements_path(settings, project.name)),
        drop_bad_rows=settings.data.drop_bad_rows if drop_bad_rows is None else drop_bad_rows,
        near_duplicate=settings.data.near_duplicate,
        origin=str(path or project.dataset.source),
    )


def placements_path(settings: Settings, project: str) -> Path:
    """The file that keeps the split of every row of a project."""
    return settings.path("splits", f"{project}.jsonl")
