"""The automations as values: what they wait for, and that a living run is not taken for dead."""

from __future__ import annotations

import uuid

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.settings import Settings as PrefectSettings

from deployments.automations import NOT_BEGUN_SECONDS, SILENT_SECONDS, automations
from deployments.places import HEARTBEAT_SECONDS
from tasks.events import KINDS, event_name


def test_there_is_one_for_each_thing_that_is_told_and_each_says_what_to_type() -> None:
    made = automations("http://127.0.0.1:4200", uuid.uuid4())
    assert len({each.name for each in made}) == len(made)
    expected = {name for each in made for name in each.trigger.expect}
    assert {event_name(kind) for kind in KINDS} <= expected
    assert {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "Late")} <= expected
    told = [action for each in made for action in each.actions if action.type == "send-notification"]
    assert len(told) == len(KINDS) + 3
    for action in told:
        assert (
            "Look at " in action.body
            and "Type: " in action.body
            and action.subject.split()[0] in {*KINDS, "failed", "crashed", "late"}
        )


def test_a_run_that_says_seldom_that_it_lives_is_not_taken_for_dead() -> None:
    usual = PrefectSettings().flows.heartbeat_frequency or 0
    assert usual < SILENT_SECONDS and SILENT_SECONDS >= 3 * HEARTBEAT_SECONDS
    [silent] = [each for each in automations("", uuid.uuid4()) if "prefect.flow-run.heartbeat" in each.trigger.after]
    assert "prefect.flow-run.Running" in silent.trigger.after, "one that is killed before it has said so"
    assert silent.trigger.within.total_seconds() == SILENT_SECONDS
    assert {
        "prefect.flow-run.heartbeat",
        "prefect.flow-run.Completed",
        "prefect.flow-run.Failed",
    } <= silent.trigger.expect


def test_a_run_that_a_killed_worker_had_taken_and_not_begun_is_known_to_have_crashed() -> None:
    [taken] = [each for each in automations("", uuid.uuid4()) if each.trigger.after == {"prefect.flow-run.Pending"}]
    assert taken.trigger.within.total_seconds() == NOT_BEGUN_SECONDS
    assert {"prefect.flow-run.Running", "prefect.flow-run.AwaitingConcurrencySlot"} <= taken.trigger.expect
    [action] = taken.actions
    assert isinstance(action, ChangeFlowRunState) and action.state == StateType.CRASHED
