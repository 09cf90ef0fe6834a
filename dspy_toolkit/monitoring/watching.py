"""One look at a live program: new labelled rows, what was said of its served replies, drift, latency, calibration, reproducibility.

Covered: the champion as it is now. Its replies that were served from the model (not from a cache) and labelled are scored by the
project's metric and held against the score of its promotion. Labelled rows that came into the dataset since, and are not sealed,
are run and scored in the same way, by a test of their own; each has half of the false-alarm rate. A few sealed rows that it
answered when it was promoted are asked again: it should answer them as it did. Nothing is learned from sealed rows here, and
new sealed rows stay sealed.

All is computed anew from what is kept, so a look that was missed, or made twice, changes nothing; the engine's figures alone are
of this look.

Not covered: what follows (`flows/monitor_program.py`); ratings without labels, which are counted but are no score; and served
replies that nobody rated or labelled: serving keeps none of them here, so drift and latency do not see them. Rows are run through
the cache of replies: as long as all that its key holds is the same (`dspy_toolkit.lm.reply_cache`), the model is not asked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import examples, read_file
from dspy_toolkit.errors import MetricError, ObjectMissing
from dspy_toolkit.evaluation import evaluate
from dspy_toolkit.feedback import Feedback, latest, read_feedback
from dspy_toolkit.metrics import score
from dspy_toolkit.monitoring.calibration import Calibration, calibration
from dspy_toolkit.monitoring.drift import Drift, find_drift
from dspy_toolkit.monitoring.engine import EngineFigures, EngineMeter
from dspy_toolkit.monitoring.sequential import Fall, fall_of
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.project import data_part
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.store import Frozen, Ref

if TYPE_CHECKING:
    import pandas as pd

    from dspy_toolkit.pipeline.context import Context, Progress

log = logging.getLogger(__name__)

DIGITS = 9
"""Of a score, when two runs are compared."""


class Watch(Frozen):
    """What one look has seen."""

    project: str
    version: int
    reference: float | None
    """The champion's score when it was promoted, on the sealed rows where they were opened; None where nothing was measured."""
    reference_rows: int
    served: Fall | None
    """Of the labelled replies; None without a reference."""
    fresh: Fall | None
    """Of the new labelled rows."""
    replies: int
    """Of this version, those that somebody rated or labelled: nothing else is kept of what was served."""
    labelled: int
    """Of those, with labels and not from a cache."""
    liked: float | None
    """Mean of the ratings."""
    parse_failures: int
    """Rows whose reply could not be read, among the fresh ones and those that were asked again."""
    seconds_median: float | None
    """Of `replies`, those that came from the model."""
    seconds_p95: float | None
    drift: tuple[Drift, ...]
    """Of the inputs and answers of `replies`."""
    calibration: Calibration | None
    asked_again: int
    """Sealed rows that were answered before."""
    otherwise: int
    """Of those, rows whose score is another one now."""
    engine: EngineFigures | None = None
    """Of the rows that were run; None where no engine of this process answered: a cache did, or a model elsewhere."""

    @property
    def falls(self) -> tuple[tuple[str, Fall], ...]:
        """Where there is something to hold against the promotion, by name."""
        both = (("served replies", self.served), ("new labelled rows", self.fresh))
        return tuple((name, fall) for name, fall in both if fall is not None and fall.n)

    @property
    def suspected(self) -> bool:
        """Whether one of them has fallen."""
        return any(fall.suspected for _, fall in self.falls)

    @property
    def confirmed(self) -> bool:
        """Whether one of them has fallen, with the error of the promotion's own score granted."""
        return any(fall.confirmed for _, fall in self.falls)

    @property
    def sentence(self) -> str:
        """For people."""
        said = [f"{name}: {fall.sentence}" for name, fall in self.falls]
        return f"{self.project}@{self.version}. " + (
            " ".join(said) or "There are no labelled replies and no new labelled rows."
        )


@dataclass(frozen=True)
class _Again:
    """Rows that were asked again."""

    rows: int = 0
    otherwise: int = 0
    """Those with another score than before."""
    parse_failures: int = 0


@dataclass(frozen=True)
class _Reference:
    """What the champion did when it was promoted."""

    mean: float | None
    rows: int
    table: Ref | None
    """Row by row."""


def watch(context: Context, progress: Progress | None = None) -> Watch | None:
    """Look at the project's champion; None while nothing is live.

    Raises:
        DatasetError: the rows, or the file of replies, cannot be read.
        RegistryError, ProjectError: the champion does not fit the project any more.
        ToolkitError: the model failed.
    """
    live = load_program(context.settings, context.project.name, context.project.location)
    if live.manifest is None:
        return None
    version = _version(context)
    reference = reference_of(live)
    old, fresh = _rows(context, live)
    engine = EngineMeter(context.connection.model)
    with engine.running():
        table, unread = _run(context, live, fresh, progress)
    said = latest(read_feedback(context.settings.path(), context.project.name))
    served = [each for each in said if each.version == version]
    scored = [(reply, value) for reply in served if (value := _score(context, reply)) is not None]
    alpha = context.settings.monitor.false_alarm_rate / 2
    known, mean = reference.mean is not None, reference.mean or 0.0
    test = partial(fall_of, reference=mean, alpha=alpha, reference_rows=reference.rows or None)
    waited = [each.seconds for each in served if not each.cached]
    with engine.running():
        again = _ask_again(context, live, reference, progress)
    sure = [(_confidence(reply), value) for reply, value in scored]
    rated = [each.rating for each in served if each.rating is not None]
    return Watch(
        project=context.project.name,
        version=version,
        reference=reference.mean,
        reference_rows=reference.rows,
        served=test([value for _, value in scored]) if known else None,
        fresh=test(list(table["value"])) if known and table is not None else None,
        replies=len(served),
        labelled=len(scored),
        liked=sum(rated) / len(rated) if rated else None,
        parse_failures=unread + again.parse_failures,
        seconds_median=median(waited) if waited else None,
        seconds_p95=_quantile(waited, 0.95),
        drift=find_drift(*_columns(context, old, served)),
        calibration=calibration(
            [each for each, _ in sure if each is not None], [value for each, value in sure if each is not None]
        ),
        asked_again=again.rows,
        otherwise=again.otherwise,
        engine=engine.figures,
    )


def reference_of(live: LoadedProgram) -> _Reference:
    """What the manifest says that the champion scored."""
    reports = live.manifest.reports if live.manifest else {}
    sealed = reports.get("comparison") or {}
    for report in (sealed.get("candidate"), reports.get("candidate_val")):
        if isinstance(report, dict) and report.get("n"):
            return _Reference(float(report["mean"]), int(report["n"]), Ref.model_validate(report["rows"]))
    return _Reference(None, 0, None)


def _version(context: Context) -> int:
    from dspy_toolkit.registry import champion

    version = champion(context.settings, context.project.name).version
    assert version is not None
    return version


def _rows(context: Context, live: LoadedProgram) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """The rows that the champion was chosen on, where they are still in the store; and labelled rows that came later."""
    import pandas as pd

    store, manifest = context.store, live.manifest
    assert manifest is not None
    kinds = {name: Ref(sha256=found, kind="parquet") for name, found in manifest.split_sha256.items()}
    try:
        old = {name: store.read_frame(ref) for name, ref in kinds.items()}
    except ObjectMissing:
        old = {}
    content = read_file(context.project.data_path)
    now = prepare(context, data_part(context.project, context.settings, content))
    open_rows = pd.concat([store.read_frame(now.train), store.read_frame(now.val)], ignore_index=True)
    if not old:
        return None, open_rows.iloc[:0]
    seen = {str(row) for frame in old.values() for row in frame["_row"]}
    fresh: Any = open_rows[[str(row) not in seen for row in open_rows["_row"]]].reset_index(drop=True)
    chosen_on = pd.concat([frame for name, frame in old.items() if name != "sealed"], ignore_index=True)
    return chosen_on, sample_rows(fresh, context.settings.monitor.fresh_rows)


def _run(
    context: Context, live: LoadedProgram, rows: pd.DataFrame, progress: Progress | None
) -> tuple[pd.DataFrame | None, int]:
    """The champion's scores on rows, and how many of its replies could not be read."""
    if rows.empty:
        return None, 0
    report = evaluate(
        live.program,
        rows,
        context.project.dataset,
        context.project.metric,
        split="fresh",
        lm=context.connection.lm,
        adapter=context.connection.adapter,
        store=context.store,
        threads=context.settings.optimize.threads,
        progress=None if progress is None else lambda done, total, _="": progress(done, total, "fresh rows"),
    )
    return context.store.read_frame(report.rows), report.parse_failures


def _ask_again(context: Context, live: LoadedProgram, reference: _Reference, progress: Progress | None) -> _Again:
    """Rows of the promotion's own table, run again."""
    count = context.settings.monitor.sealed_rows
    manifest = live.manifest
    if not count or reference.table is None or manifest is None:
        return _Again()
    try:
        before = context.store.read_frame(reference.table)
        rows = [
            context.store.read_frame(Ref(sha256=found, kind="parquet"))
            for name, found in manifest.split_sha256.items()
            if name != "train"
        ]
    except ObjectMissing as error:
        log.warning("Nothing is asked again: %s", error)
        return _Again()
    import pandas as pd

    known = {str(row): round(float(value), DIGITS) for row, value in zip(before["_row"], before["value"], strict=True)}
    table = pd.concat(rows, ignore_index=True)
    known_rows: Any = table[[str(row) in known for row in table["_row"]]]
    table = sample_rows(known_rows.reset_index(drop=True), count)
    found, unread = _run(context, live, table, progress)
    if found is None:
        return _Again()
    changed = sum(
        round(float(value), DIGITS) != known[str(row)] for row, value in zip(found["_row"], found["value"], strict=True)
    )
    return _Again(len(found), changed, unread)


def _score(context: Context, reply: Feedback) -> float | None:
    """The reply's score by the project's metric; None where it was cached, or nobody has said what is right."""
    if reply.cached or not reply.labels:
        return None
    import dspy
    import pandas as pd

    spec = context.project.dataset
    if missing := [name for name in spec.outputs if name not in reply.labels]:
        log.warning("Reply %s has no label for %s.", reply.request_id, ", ".join(missing))
        return None
    row = {name: [reply.inputs.get(name)] for name in spec.inputs} | {
        name: [reply.labels[name]] for name in spec.outputs
    }
    frame = pd.DataFrame({"_row": ["0"], "_group": ["0"], **row})
    [example] = examples(frame, spec, fields_of(context.project.build()))
    try:
        with context.connection.context():  # the metric may ask a model
            return score(context.project.metric, example, dspy.Prediction(**reply.prediction)).value
    except MetricError as error:
        log.warning("Reply %s has no score: %s", reply.request_id, error)
        return None


def _columns(
    context: Context, old: pd.DataFrame | None, served: Sequence[Feedback]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Inputs of the rows that the champion was chosen on beside those it is asked; labels of the former beside its answers."""
    spec = context.project.dataset
    if old is None:
        return {}, {}
    before = {name: list(old[name]) for name in (*spec.inputs, *spec.outputs)}
    now = {name: [each.inputs.get(name) for each in served] for name in spec.inputs}
    now |= {name: [each.prediction.get(name) for each in served] for name in spec.outputs}
    return before, now


def _confidence(reply: Feedback) -> float | None:
    """How sure the program was, where it says so: a number, or one for each output."""
    said = reply.prediction.get("confidence")
    if isinstance(said, dict) and len(said) == 1:
        [said] = said.values()
    return float(said) if isinstance(said, int | float) and 0 <= said <= 1 else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    import numpy as np

    return float(np.quantile(values, share)) if values else None


def as_json(found: Watch) -> str:
    """For people and scripts."""
    return json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False)
