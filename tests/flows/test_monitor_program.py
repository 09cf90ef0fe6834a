"""A live program is watched: quiet while it does as it did, an alert, a new search and a roll-back when it has fallen.

Not covered: what becomes of an alert (tests/monitoring/test_alerts.py), and that an event becomes one (tests/system/test_make_up.py).
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.usefixtures("prefect_server")


THINGS = ["boats", "lamps", "hats", "tents", "drums", "pearls", "kites", "stoves", "ropes", "clocks", "vases", "globes"]
TOWNS = ["Lima", "Oslo", "Cairo", "Hanoi", "Perth", "Quito", "Sofia", "Turin", "Dakar", "Minsk"]


class Told(NamedTuple):
    """What a flow reported."""

    kind: str
    about: str
    message: str
    look: str


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    said: list[Told] = []

    def tell(kind: str, about: str, message: str, *, look: str, command: str) -> None:
        assert message and look and command
        said.append(Told(kind, about, message, look))

    for module in ("watching", "show", "measurement"):
        monkeypatch.setattr(f"tasks.{module}.tell", tell)
    return said


def subjects(told: list[Told]) -> list[tuple[str, str]]:
    return [(each.kind, each.about) for each in told]


def artifact(key: str) -> Any:
    """The latest of Prefect's artifacts with this key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

    named = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        (found,) = client.read_latest_artifacts(artifact_filter=named)
    return found


def page_of(run_id: Any) -> str:
    """The address of a run on Prefect's pages."""
    from prefect.settings import PREFECT_UI_URL

    return f"{PREFECT_UI_URL.value()}/flow-runs/flow-run/{run_id}"


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger warns of. Prefect's hand nothing on to the root, where pytest listens."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(name).removeHandler(handler)


def add_rows(playground: Any) -> int:
    """Labelled rows that the project did not have; how many."""
    new = [f"{1100 + 7 * n}: {thing} near {town}?" for n, thing in enumerate(THINGS) for town in TOWNS]
    with playground.rows.open("a") as file:
        file.writelines(f'"{text}",number\n' for text in new)
    return len(new)


def serve(
    playground: Any, version: int, right: int, wrong: int, *, text: Callable[[str], str] = str, **changes: Any
) -> None:
    """Write what serving writes: replies of a version, each labelled, some of them wrong; asked for are texts made of the rows'."""
    with playground.rows.open() as file:
        rows = list(csv.DictReader(file))
    folder = playground.settings.path("feedback")
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(right + wrong):
        row = rows[number % len(rows)]
        other = "number" if row["label"] == "person" else "person"
        said = {
            "at": f"2026-11-27T01:{number // 60 % 60:02}:{number % 60:02}+00:00",
            "request_id": f"r{version}-{number}-{changes}",
            "trace_id": f"tr-{number}",
            "program": "questions",
            "version": version,
            "inputs": {"text": text(row["text"])},
            "prediction": {"label": row["label"] if number < right else other},
            "cached": False,
            "seconds": 0.25,
            "rating": 1.0,
            "labels": {"label": row["label"]},
        }
        sure = {"confidence": changes["confidence"]} if "confidence" in changes else {}
        said["prediction"] |= sure
        lines.append(json.dumps(said | {name: value for name, value in changes.items() if name not in sure}) + "\n")
    with (folder / "questions.jsonl").open("a") as file:
        file.writelines(lines)


def test_a_fall_is_told_and_rolled_back_and_nothing_else_is(
    playground: Any, told: list[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.registry import champion
    from dspy_toolkit.tracking.looks import past_looks
    from dspy_toolkit.tracking.nights import past_nights
    from flows.monitor_program import monitor_program
    from flows.optimize_program import optimize_program

    started: list[str] = []
    monkeypatch.setattr("tasks.watching._begin_search", lambda found, location: started.append(location))
    assert monitor_program(playground.location) == {}, "nothing is live yet"
    decision = optimize_program(playground.location, optimizer="labelled", budget="60")
    assert decision.outcome == "promoted" and subjects(told) == [("promoted", "questions")]
    version, settings = decision.version, playground.settings
    [night] = [each for each in past_nights(settings, "questions") if each["outcome"] == "promoted"]
    assert night["version"] == str(version) and night["sealed"] > night["champion"]

    told.clear()
    serve(playground, version, right=60, wrong=0)
    serve(playground, version, right=0, wrong=60, cached=True)  # no news about the program
    serve(playground, version, right=0, wrong=60, labels=None)
    serve(playground, version - 1, right=0, wrong=60)
    assert monitor_program() == {}, "a project that this machine does not know by its name"
    monkeypatch.setenv("DSPY_TOOLKIT_PROJECTS__QUESTIONS__LOCATION", playground.location)
    assert "on 60 rows" in monitor_program(auto_rollback=True)["questions"]
    assert (told, started, champion(settings, "questions").version) == ([], [], version)
    [look] = past_looks(settings, "questions")
    assert (look.metrics["served_mean"], look.metrics["replies"], look.metrics["labelled"]) == (1.0, 180.0, 60.0)
    assert look.metrics["asked_again"] == 8 and look.metrics["otherwise"] == 0, "sealed rows are answered as they were"
    assert not [name for name in look.metrics if name.startswith("engine")], "the cache of replies answered"
    assert "engine:" not in artifact("questions-watch-details").data

    serve(playground, version, right=0, wrong=40, rating=0.0)
    monitor_program(playground.location)
    regression = ("regression", f"questions@{version}")
    assert subjects(told) == [regression] and started == [playground.location]
    assert champion(settings, "questions").version == version, "only when it is asked for"
    monitor_program(playground.location, auto_rollback=True)
    assert subjects(told)[-2:] == [regression, ("rolled-back", "questions")]
    assert champion(settings, "questions").version == version - 1
    told.clear()
    monitor_program(playground.location, auto_rollback=True)
    assert champion(settings, "questions").version == version - 1, "the first one stays"


@pytest.mark.soak
def test_a_changed_world_and_a_changed_model_are_told_apart_and_shown(
    playground: Any, told: list[Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other inputs, and a model that answers sealed rows otherwise, some of them not at all; the labelled replies stay right."""
    from dspy_toolkit.lm.connection import serve_engine
    from dspy_toolkit.testing import FakeEngine
    from dspy_toolkit.tracking.looks import past_looks
    from flows.monitor_program import monitor_program
    from flows.optimize_program import optimize_program

    add_rows(playground)  # else too few are left, beside the sealed ones, to speak of drift
    version = optimize_program(playground.location, optimizer="labelled", budget="60").version
    name = f"questions@{version}"

    def longer(text: str) -> str:
        return (
            f"{text} Kindly refrain from abbreviating whatever documentation accompanies your forthcoming explanation."
        )

    serve(playground, version, right=50, wrong=0, text=longer, confidence=0.6)
    serve(playground, version, right=10, wrong=0, text=longer, confidence=0.6, seconds=4.0, rating=0.0)
    other = FakeEngine(
        lambda request: "??" if "How often" in request.messages[-1].content else {"label": "number"},
        check_grammar=False,
    )
    serve_engine(other)
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", other.model)
    told.clear()
    try:
        flow_run = monitor_program(playground.location, return_state=True)
    finally:
        other.close()

    assert subjects(told) == [("drift", f"{name} text"), ("drift", f"{name} label"), ("not-reproduced", name)]
    drift, _, changed = told
    assert "text, length" in drift.message and "text, new words" in drift.message
    asked = {
        request.messages[-1].content for request in other.requests
    }  # a reply that cannot be read is asked for twice
    unread = sum("How often" in text for text in asked)
    otherwise = unread + sum("Who " in text for text in asked)
    assert 0 < unread < otherwise < 8
    assert changed.message == f"{name} answers {otherwise} of 8 rows otherwise than when it was promoted."
    run_id = flow_run.state_details.flow_run_id
    assert {each.look for each in told} == {f"{page_of(run_id)} (artifact questions-watch-details)"}

    [look] = past_looks(playground.settings, "questions")
    assert look.metrics["calibration_error"] == pytest.approx(0.4) and look.metrics["brier"] == pytest.approx(0.16)
    assert look.metrics["parse_failures"] == unread, "of the sealed rows"
    assert (look.metrics["seconds_median"], look.metrics["seconds_p95"]) == (0.25, 4.0)
    assert look.metrics["engine_requests"] == len(other.requests), "the series of the engine"
    assert look.metrics["engine_prefix_hit_ratio"] == 0 and look.drifted == "text length, text new words, label values"

    table, details = artifact("questions-watch"), artifact("questions-watch-details")
    [row] = json.loads(table.data)
    assert (row["what"], row["mean"], row["rows"], row["verdict"]) == ("served replies", "100.0%", 60, "as before")
    assert table.description in details.data and f"## {name}\n" in details.data
    for line in (
        f"- {drift.message.split('; ')[0]} **drifted**",
        "- confidence: 60.0% in the mean, right 100.0%; error 0.400, off",
        "- seconds a reply: 0.25 in the middle, 4.00 for 95 %",
        f"- asked again: 8 rows, {otherwise} answered otherwise",
        f"- parse failures: {unread} of the rows that were run",
        f"- engine: {len(other.requests)} requests, 0% of the prompts' tokens from a shared prefix",
    ):
        assert line in details.data.splitlines()


def fallen(version: int = 1) -> Any:
    """A look that has found a program fallen."""
    from dspy_toolkit.monitoring import fall_of
    from dspy_toolkit.monitoring.watching import Watch

    nothing: dict[str, Any] = dict.fromkeys(("fresh", "liked", "seconds_median", "seconds_p95", "calibration"))
    return Watch(
        **nothing, project="questions", version=version, reference=0.95, reference_rows=240,
        served=fall_of([0.0] * 30, 0.95, reference_rows=240), replies=30, labelled=30, parse_failures=0, drift=(),
        asked_again=0, otherwise=0,
    )  # fmt: skip


@contextmanager
def nightly_questions() -> Iterator[Any]:
    """The id of the project's nightly deployment on the suite's server, where no worker takes its runs."""
    from prefect.client.orchestration import get_client

    from flows.optimize_program import optimize_program

    with get_client(sync_client=True) as client:
        made = client.create_deployment(client.create_flow(optimize_program), "nightly-questions")
        try:
            yield made
        finally:
            client.delete_deployment(made)


def act(found: Any, location: str) -> None:
    """As one hour's run does."""
    from prefect import flow

    from tasks.watching import act_on_fall

    @flow(name="an hour")
    def hour() -> None:
        act_on_fall(found, location, False)

    hour()


def test_one_search_is_begun_for_a_version_however_often_its_fall_is_seen(playground: Any, told: list[Told]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    with nightly_questions() as deployment, warnings_of("prefect.task_runs") as warned:
        for version in (1, 1, 2):
            act(fallen(version), playground.location)
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    assert [(set(run.tags), run.idempotency_key) for run in sorted(runs, key=lambda run: run.created)] == [
        ({"challenger"}, "challenger-questions-1"),
        ({"challenger"}, "challenger-questions-2"),
    ]
    assert {kind for kind, *_ in told} == {"regression"}
    assert not [said for said in warned if "deployment" in said]


def test_without_a_deployment_to_search_with_a_warning_says_how_to_make_one(playground: Any, told: list[Told]) -> None:
    with warnings_of("prefect.task_runs") as warned:
        act(fallen(), playground.location)
    [said] = [said for said in warned if "deployment" in said]
    assert "optimize-program/nightly-questions" in said and f"dspy-toolkit deploy {playground.location}" in said
    assert subjects(told) == [("regression", "questions@1")], "told all the same"


def test_a_slow_engine_is_told_with_the_address_of_its_run(playground: Any, told: list[Told]) -> None:
    from prefect import flow

    from dspy_toolkit.tracking.machine import Conditions, Figure, Measurement
    from tasks.measurement import record_measurement

    conditions = Conditions(
        system="s", chip="c", cores=2, memory_gb=8, device="cpu", model="m", batch_size=1, requests=4
    )

    @flow
    def measured(rate: float) -> None:
        figure = Figure(name="warm_prefix", value=rate, unit="requests/s")
        record_measurement(Measurement(conditions=conditions, figures=(figure,)), "here")

    measured(10.0)
    run_id = measured(5.0, return_state=True).state_details.flow_run_id
    [slow] = told
    assert (slow.kind, slow.look) == ("engine-slow", f"{page_of(run_id)} (artifact machine-warning)")


def test_new_labelled_rows_are_run_and_sealed_ones_stay_sealed(playground: Any, told: list[Told]) -> None:
    from dspy_toolkit.tracking.looks import past_looks
    from flows.monitor_program import monitor_program
    from flows.optimize_program import optimize_program

    assert optimize_program(playground.location, optimizer="labelled", budget="60").outcome == "promoted"
    new = add_rows(playground)
    monitor_program(playground.location)
    [look] = past_looks(playground.settings, "questions")
    assert 20 <= look.metrics["fresh_rows"] < new, "those that are not sealed"
    assert look.metrics["fresh_mean"] == 1.0
    assert look.metrics["engine_requests"] == look.metrics["fresh_rows"], "the cache answered the sealed ones"


@pytest.mark.parametrize(
    ("said", "hot"),
    [
        ("CPU_Scheduler_Limit \t= 100\nCPU_Speed_Limit \t= 100\n", False),
        ("CPU_Speed_Limit \t= 62\n", True),
        ("Note: No thermal warning level has been recorded\n", False),
        ("", False),
    ],
)
def test_what_macos_says_of_its_speed_is_understood(said: str, hot: bool) -> None:
    from tasks.watching import is_throttled

    assert is_throttled(said) is hot


def test_a_full_disk_is_told(playground: Any, told: list[Told], monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.watching import look_at_machine

    monkeypatch.setenv("DSPY_TOOLKIT_MONITOR__DISK_FREE_GB", "1e9")
    look_at_machine()
    [(kind, *_)] = told
    assert kind == "disk-low" and Path(playground.settings.path()).is_dir()
