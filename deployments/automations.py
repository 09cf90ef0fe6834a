"""What is told to whom, as code: Prefect's automations, and the notification block that they speak through.

A failed, crashed or late run; a run whose process is gone (it becomes Crashed first); and what the flows report themselves: a
promotion, a roll-back, a regression, a slow engine, throttling, a full disk. All go to `POST /alerts` of our pages, which folds
repeated ones, keeps them, and passes them on to the addresses of `alerts.targets` (`dspy_toolkit.monitoring.alerts`).

Each says what happened, where to look, and what to type.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from deployments.places import Places
from tasks.events import KINDS, event_name

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

BLOCK = "dspy-toolkit-alerts"
SILENT_SECONDS = 240
"""A run that has not been heard of for so long is gone. Longer than Prefect's own 180 s between two heartbeats: a flow that somebody
starts from elsewhere is not told to say it more often, and must not be taken for dead."""
NOT_BEGUN_SECONDS = 600
"""A run that a worker has taken and that has not begun by then will not: its worker was killed. A busy machine takes a minute."""
RUN_STATES = {
    "failed": ("Failed", "`prefect flow-run logs {{ flow_run.id }}` shows why"),
    "crashed": ("Crashed", "`prefect flow-run retry {{ flow_run.id }}` runs it again: it goes on where it was"),
    "late": ("Late", "`make status` shows whether a worker runs; `make up` starts it"),
}
"""Kind → the state's name, and what to type."""
OVER = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")


def register_automations(places: Places) -> None:
    """Make the block and every automation, or bring those that are there up to date."""
    from prefect.automations import Automation
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    CustomWebhookNotificationBlock.register_type_and_schema()
    block = CustomWebhookNotificationBlock(
        name=BLOCK,
        url=f"{places.pages}/alerts",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
        headers={"Authorization": "Bearer {{token}}"},
        secrets={"token": places.alerts_token},  # pyright: ignore[reportArgumentType]
    )
    block_id = block.save(BLOCK, overwrite=True)
    for wanted in automations(places.server, block_id):
        try:
            there = Automation.read(name=wanted.name)
        except ValueError:
            Automation(**wanted.model_dump()).create()
        else:
            Automation(**wanted.model_dump(), id=there.id).update()


def automations(pages: str, block_id: Any) -> list[AutomationCore]:
    """All of them.

    Args:
        pages: the address of Prefect's pages.
        block_id: of the notification block.
    """
    return [
        *(_of_state(kind, pages, block_id) for kind in RUN_STATES),
        _zombies(),
        _never_begun(),
        *(_of_kind(k, block_id) for k in KINDS),
    ]


def _of_state(kind: str, pages: str, block_id: Any) -> AutomationCore:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    state, command = RUN_STATES[kind]
    body = (
        f"The run {{{{ flow_run.name }}}} of {{{{ flow.name }}}} is {state}: {{{{ flow_run.state.message or 'no message' }}}}\n"
        f"Look at {pages}/runs/flow-run/{{{{ flow_run.id }}}}\nType: {command}."
    )
    return AutomationCore(
        name=f"dspy-toolkit: a run is {kind}",
        description="Made by `make up`.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}"},
            match={"prefect.resource.id": "prefect.flow-run.*"},  # pyright: ignore[reportArgumentType]
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=block_id, subject=f"{kind} {{{{ flow.name }}}}", body=body)],
    )


def _zombies() -> AutomationCore:
    """A run that has begun, or has said that it lives, is silent now, and has not ended, has crashed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name="dspy-toolkit: the process of a run is gone",
        description="Made by `make up`.",
        trigger=EventTrigger(
            after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in OVER)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},  # pyright: ignore[reportArgumentType]
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="Its process has not been heard of for minutes.")],
    )


def _never_begun() -> AutomationCore:
    """A run that a worker took, and that has not begun since, has crashed: it has no heartbeat that could be missed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    begun = ("Running", "AwaitingConcurrencySlot", "AwaitingRetry", "Scheduled", "Cancelling", *OVER)
    return AutomationCore(
        name="dspy-toolkit: a run was taken and has not begun",
        description="Made by `make up`.",
        trigger=EventTrigger(
            after={"prefect.flow-run.Pending"},
            expect={f"prefect.flow-run.{state}" for state in begun},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},  # pyright: ignore[reportArgumentType]
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=NOT_BEGUN_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="Its worker took it, and it has not begun since.")
        ],
    )


def _of_kind(kind: str, block_id: Any) -> AutomationCore:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    body = "{{ event.payload.message }}\nLook at {{ event.payload.look }}\nType: {{ event.payload.command }}"
    return AutomationCore(
        name=f"dspy-toolkit: {kind}",
        description=f"Made by `make up`. {KINDS[kind]}",
        trigger=EventTrigger(
            expect={event_name(kind)},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(block_document_id=block_id, subject=f"{kind} {{{{ event.payload.about }}}}", body=body)
        ],
    )
