"""Writing MLflow runs.

Covered: one whole run made from plain values: parameters, metrics (a value or a history), tags, files, tables. Any
thread may record. A `SecretStr`, and any value under a name such as `api_key`, is written as a mask. The files of a
run are in `HOME/artifacts`; an MLflow server keeps them in its own place.

Not covered: reaching MLflow (`dspy_toolkit.tracking.mlflow_client`), versions and aliases (`dspy_toolkit.registry`),
figures (`dspy_toolkit.report.plots`), a secret inside the bytes of a file, and `mlflow.dspy.autolog`, which changes
DSPy's global configuration.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.tracking.mlflow_client import experiment_id, session
from dspy_toolkit.tracking.processes import PROCESS_TAG, this_process

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from dspy_toolkit.settings import Settings

MASK = "**********"
PROJECT_TAG = "project"

_SECRET_NAME = re.compile(r"(^|_)(api_?key|password|passwd|secret|credentials?|token)$", re.IGNORECASE)
_NOT_IN_A_KEY = re.compile(r"[^\w\-. :/]", re.ASCII)
_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000
_BATCH = 100


def open_run(settings: Settings, project: str, run_name: str, tags: Mapping[str, Any] | None = None) -> str:
    """Begin a run and return its id; `record_run(…, run_id=…)` fills and closes it.

    Use it when something needs the run before the rest is known, as a program version does. Should this process be killed
    before the run is closed, the next one can tell (`dspy_toolkit.tracking.processes`).

    Raises:
        RegistryError: MLflow cannot be reached or written.
    """
    with session(settings, f"Cannot begin the run {run_name!r}") as mlflow:
        source = {"mlflow.source.name": "dspy-toolkit", PROCESS_TAG: this_process(settings)}
        run = mlflow.create_run(
            experiment_id(mlflow, settings), run_name=run_name, tags=_run_tags(project, tags) | source
        )
    return run.info.run_id


def record_run(
    settings: Settings,
    project: str,
    run_name: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float | Sequence[float] | None],
    artifacts: Mapping[str, bytes | str] | None = None,
    tags: Mapping[str, Any] | None = None,
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    run_id: str | None = None,
) -> str:
    """Write one MLflow run and close it. The names are checked and the files made before the run begins.

    Args:
        settings: where to, and the experiment's name.
        project: written as the tag `project`.
        run_name: the name shown; MLflow lets two runs share a name.
        params: scalars, lists, models or dictionaries; a dictionary becomes `outer.inner`, a text over 6,000
            characters is cut, secrets are masked.
        metrics: a number; or numbers in the order in which they were measured, steps 0, 1, …; or None, which is left
            out.
        artifacts: path inside the run → the file's bytes, or its text (written as UTF-8).
        tags: short texts to search for; over 8,000 characters they are cut.
        tables: path inside the run ending in `.json` → a table that MLflow's pages show.
        run_id: a run from `open_run` to fill and close; a new one by default.

    Returns:
        The run's id.

    Raises:
        RegistryError: a name that is not usable, or something could not be written; the run is then marked FAILED.
    """
    named = {_key(name): _cut(value, _LONGEST_PARAM) for name, value in _flatten(params)}
    numbers = list(_numbers(metrics))
    files = {_inside(path): _bytes(content) for path, content in (artifacts or {}).items()}
    files |= {_inside(path): _table(path, frame) for path, frame in (tables or {}).items()}
    run_tags = _run_tags(project, tags)
    if tables:
        run_tags["mlflow.loggedArtifacts"] = json.dumps([{"path": path, "type": "table"} for path in tables])

    run_id = run_id or open_run(settings, project, run_name)
    finished = False
    try:
        with session(settings, f"The run {run_name!r} of {project} could not be recorded") as mlflow:
            _write(mlflow, run_id, named, numbers, run_tags)
            write_artifacts(mlflow, run_id, files)
            mlflow.set_terminated(run_id, "FINISHED")
        finished = True
    finally:
        if not finished:
            close_failed(settings, run_id)
    return run_id


def tag_run(settings: Settings, run_id: str, tags: Mapping[str, Any]) -> None:
    """Add tags to a run that is written already.

    Raises:
        RegistryError: MLflow cannot be written.
    """
    with session(settings, f"The run {run_id} could not be tagged") as mlflow:
        for name, value in _flatten(tags):
            mlflow.set_tag(run_id, _key(name), _cut(value, _LONGEST_TAG))


def close_failed(settings: Settings, run_id: str) -> None:
    """Mark a run from `open_run` as FAILED. Where even that fails it is logged: the first error is the one to raise."""
    try:
        with session(settings, f"The run {run_id} could not be marked as failed") as mlflow:
            mlflow.set_terminated(run_id, "FAILED")
    except RegistryError as error:
        logging.getLogger(__name__).warning("%s", error)


def write_artifacts(mlflow: MlflowClient, run_id: str, files: Mapping[str, bytes], folder: str | None = None) -> None:
    """Copy `files` (relative path → bytes) into the run's artifacts, under `folder`. Call it inside `mlflow_errors`."""
    if not files:
        return
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-") as scratch:
        for path, content in files.items():
            target = Path(scratch, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        mlflow.log_artifacts(run_id, scratch, folder)


def masked(value: Any, name: str = "") -> Any:
    """`value` with a mask for every secret in it, known by its type or by the last word of its name.

    Models come back as dictionaries, tuples as lists.
    """
    if isinstance(value, SecretStr) or (value is not None and _SECRET_NAME.search(name)):
        return MASK
    if isinstance(value, BaseModel):
        value = {field: getattr(value, field) for field in type(value).model_fields}
    if isinstance(value, Mapping):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(inner) for inner in value]
    return value


def _write(
    mlflow: MlflowClient,
    run_id: str,
    params: Mapping[str, str],
    numbers: Sequence[tuple[str, float, int]],
    tags: Mapping[str, str],
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    # Not the clock's: numbers that are written twice, after a kill half-way, must be the same numbers.
    now = mlflow.get_run(run_id).info.start_time
    for part in _parts([Param(name, value) for name, value in params.items()]):
        mlflow.log_batch(run_id, params=part)
    for part in _parts([Metric(name, value, now, step) for name, value, step in numbers]):
        mlflow.log_batch(run_id, metrics=part)
    for part in _parts([RunTag(name, value) for name, value in tags.items()]):
        mlflow.log_batch(run_id, tags=part)


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _run_tags(project: str, tags: Mapping[str, Any] | None) -> dict[str, str]:
    return {PROJECT_TAG: project} | {_key(name): _cut(value, _LONGEST_TAG) for name, value in _flatten(tags or {})}


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in masked(values).items():
        if isinstance(value, dict) and value:
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _flatten(value))
        elif isinstance(value, (list, dict)):
            yield name, json.dumps(value, ensure_ascii=False, default=str)
        else:
            yield name, value


def _numbers(metrics: Mapping[str, float | Sequence[float] | None]) -> Iterator[tuple[str, float, int]]:
    for name, value in metrics.items():
        if value is None:
            continue
        history = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for step, number in enumerate(history):
            try:
                yield _key(name), float(number), step
            except (TypeError, ValueError):
                raise RegistryError(f"The metric {name!r} is {number!r}, which is not a number.") from None


def _key(name: str) -> str:
    return _NOT_IN_A_KEY.sub("_", str(name))[:250]


def _cut(value: Any, longest: int) -> str:
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _bytes(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _table(path: str, frame: pd.DataFrame) -> bytes:
    if not path.endswith(".json"):
        raise RegistryError(f"The table {path!r} must be named *.json: MLflow's pages show no other.")
    text = frame.to_json(orient="split", index=False, date_format="iso")
    return text.encode() if text else b""


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise RegistryError(
            f"An artifact cannot be called {path!r}. Use a path inside the run, such as tables/rows.json."
        )
    return str(pure)
