"""What a step shows: Prefect's artifacts on the run's page, and tables at the terminal."""

from __future__ import annotations

import base64
import contextvars
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from rich.markup import escape

from dspy_toolkit.datasets import Dataset, DatasetReport
from dspy_toolkit.display import tables
from dspy_toolkit.display.progress import Reporter
from dspy_toolkit.display.summary import print_choice, print_generators, print_summary, split_in_words
from dspy_toolkit.optimizers import Choice
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.record import plot_of, report_path
from dspy_toolkit.project import DataPart
from dspy_toolkit.run import CompareInput, Comparison, Compilation, ReleasedRun, SelectInput
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.runs import tag_run
from dspy_toolkit.tracking.traces import trace_id
from tasks.events import tell

log = logging.getLogger(__name__)

UPDATE_SECONDS = 3.0


def artifact_key(project: str, what: str) -> str:
    """The key of a project's artifact. Prefect allows lower-case letters, digits and dashes; a project's name may have `_`."""
    return f"{project}-{what}".lower().replace("_", "-")


@contextmanager
def progress(project: str, doing: str, reporter: Reporter) -> Iterator[None]:
    """A progress artifact that follows the reporter while the block runs.

    It is for people who look. A server that is away is not waited for: Prefect's client tries every request for a minute, and
    the step's own state, which counts, is asked for next.
    """
    key = artifact_key(project, f"{doing}-progress")
    artifact = create_progress_artifact(0.0, key=key, description=doing)
    over, away = threading.Event(), threading.Event()

    def follow() -> None:
        try:
            while not over.wait(UPDATE_SECONDS):
                update_progress_artifact(artifact, reporter.percent, description=reporter.doing)
        except (httpx.HTTPError, PrefectException) as error:
            log.warning("The progress of %s is not shown any more: %s", doing, error)
            away.set()

    # In the task's context, where Prefect finds its client and the run that the artifact belongs to.
    follower = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    follower.start()
    try:
        yield
        reporter.finish()
    finally:
        over.set()
        follower.join()
    if not away.is_set():
        update_progress_artifact(artifact, 100.0, description=doing)


def dataset(context: Context, given: DataPart, found: Dataset) -> None:
    """How many rows each split has."""
    report = DatasetReport.model_validate(context.store.read_json(found.report))
    rows = [
        {"split": split, "rows": count, "groups": report.groups[split], **report.classes.get(split, {})}
        for split, count in report.splits.items()
    ]
    divided = split_in_words(report, context.settings.optimize.false_promotion_rate)
    tables.console().print(escape(divided), highlight=False)
    create_table_artifact(
        rows,
        key=artifact_key(given.project, "data"),
        description=f"{report.rows} rows; {report.duplicates} duplicates, {report.near_duplicates} near-duplicates, "
        f"{len(report.set_aside)} set aside, {len(report.bad_rows)} bad rows dropped. {divided}",
    )


def choice(context: Context, given: SelectInput, found: Choice) -> None:
    """What was chosen, why, and what each optimizer would cost."""
    others = "\n".join(f"- {name}: {reason}" for name, reason in found.alternatives.items())
    create_markdown_artifact(
        f"## {found.optimizer}\n\n{found.reason}\n\nAbout {found.predicted_lm_calls} of {found.lm_calls} LM calls "
        f"({found.budget}). Settings: `{found.settings}`\n\nNot taken:\n{others}\n",
        key=artifact_key(given.project, "choice"),
        description="The optimizer, and why",
    )
    print_choice(found)


def comparison(context: Context, given: CompareInput, found: Comparison) -> None:
    """What both programs scored."""
    reports = {"candidate, val": found.candidate_val, "champion, val": found.champion_val}
    if (sealed := found.sealed) is not None:
        reports |= {"candidate, sealed": sealed.candidate, "champion, sealed": sealed.champion}
    rows = [
        {"what": name, "mean": f"{report.mean:.1%}", "95 %": f"{report.low:.1%} to {report.high:.1%}", "rows": report.n}
        for name, report in reports.items()
        if report is not None
    ]
    rows += [
        {"what": f"{name}, sealed", "mean": f"{mean:.1%}", "95 %": "", "rows": ""}
        for name, mean in found.reference_rules.items()
    ]
    create_table_artifact(rows, key=artifact_key(given.project, "comparison"), description=found.reason)


def link(settings: Settings, run_id: str) -> None:
    """Tell the MLflow run which of Prefect's runs made it, and where that is shown; the artifacts say the way back."""
    if flow_run.id is not None:
        where = {
            "prefect.flow_run_id": flow_run.id,
            "prefect.flow_run": flow_run.name or "",
            "prefect.page": page_of_run(),
        }
        if (trace := trace_id()) is not None:
            where["trace_id"] = trace
        tag_run(settings, run_id, where)


def page_of_run() -> str:
    """The address of this run on Prefect's pages; empty where a temporary server has none."""
    return str(flow_run.ui_url or "") if get_current_settings().api.url is not None else ""


def place_of(artifact: str) -> str:
    """Where a reader of a message, who knows no run, finds an artifact of this one: on its page, by the page's address."""
    page = page_of_run()
    return f"{page} (artifact {artifact})" if page else f"the artifact {artifact} of the run {flow_run.name}"


def pool(context: Context, given: Compilation, run_id: str) -> None:
    """How the candidates of each generator fared."""
    found = given.compiled
    link(context.settings, run_id)
    create_table_artifact(
        [each.model_dump() for each in found.generators],
        key=artifact_key(given.project, "pool"),
        description=found.summary,
    )
    print_generators(found)


def run(context: Context, given: ReleasedRun, run_id: str) -> None:
    """The decision, its picture, and where the run's page is."""
    link(context.settings, run_id)
    decision, figure = given.decision, plot_of(context, given)
    picture = f"\n\n![comparison](data:image/png;base64,{base64.b64encode(figure).decode()})\n" if figure else "\n"
    page = report_path(context, run_id)
    # Prefect shows no external HTML: the page is on this machine, and among the files of the MLflow run.
    where = f"\nReport: `{page}` on {socket.gethostname()}, and `report.html` of the MLflow run `{run_id}`.\n"
    create_markdown_artifact(
        f"## {decision.outcome}\n\n{decision.reason}{picture}{where}",
        key=artifact_key(given.project, "decision"),
        description=f"{given.project}: {decision.outcome}",
    )
    create_link_artifact(
        page.as_uri(), "The run's report", artifact_key(given.project, "report"), description=f"{given.name}: {page}"
    )
    if decision.outcome == "promoted":
        name = f"{given.project}@{decision.version}"
        shown = f"dspy-toolkit programs show {name}"
        tell("promoted", given.project, f"{name} is live. {decision.reason}", look=str(page), command=shown)
    print_summary(context, given, report=page)
