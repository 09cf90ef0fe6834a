"""Messages to people: kept in `HOME/alerts.jsonl`, sent to `alerts.targets`, repeated ones folded.

An alert is known by its subject, such as `failed optimize-program`. The first one is sent at once; others of that subject within
`alerts.fold_minutes` are kept and counted, and the next one that is sent says how many there were. What every look finds again as
long as it lasts (`LASTING`) is sent at most once in 24 hours, once it has reached somebody. A target is an address of Apprise:
`slack://…`, `mailto://…`, `json://host/path` (a webhook), and a hundred more.

Not covered: what is worth an alert (`deployments/automations.py`, `flows/monitor_program.py`).
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, ValidationError

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.locks import held
from dspy_toolkit.printable import printable
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

FILE = "alerts.jsonl"
KEPT = 2_000
"""Lines; older ones go, those that were folded first: the others say what was sent, and when."""
LASTING = ("regression", "drift", "not-reproduced", "disk-low", "throttled")
"""First words of subjects: conditions, not events. Each hourly look tells of them anew."""
REMINDED = timedelta(hours=24)
"""Until a condition that lasts is told again."""
LONGEST = 4_000
"""Characters of a message."""
PAUSES = (1.0, 5.0)
"""Seconds before a target that did not take a message is asked again."""


class Alert(Frozen):
    """One that came in."""

    at: AwareDatetime
    subject: str
    body: str
    sent: bool = False
    """Whether it went out, rather than being folded."""
    delivered: tuple[bool, ...] = ()
    """Of each target, in the order of the settings."""


def receive(settings: Settings, subject: str, body: str, *, now: datetime | None = None) -> Alert:
    """Keep an alert, and send it unless the same one was sent a short while ago.

    Raises:
        SettingsError: a target is no address of Apprise's, or Apprise is not installed. The alert is kept.
        StoreError: it cannot be kept.
    """
    now = now or datetime.now(UTC)
    alert = Alert(at=now, subject=printable(subject)[:200], body=printable(body)[:LONGEST])
    with held(settings.path(f"{FILE}.lock")):
        before = read(settings)
        same = [each for each in before if each.subject == alert.subject]
        last = max((place for place, each in enumerate(same) if each.sent), default=None)
        recent = last is not None and now - same[last].at < _folded_for(settings, same[last])
        alert = alert.model_copy(update={"sent": not recent})
        _keep(settings, [*before, alert])
    if recent:
        return alert
    folded = len(same) - 1 - last if last is not None else 0
    more = f"\n{folded} more of these since the last message." if folded else ""
    delivered = send(settings, alert.subject, alert.body + more)
    with held(settings.path(f"{FILE}.lock")):
        told = alert.model_copy(update={"delivered": delivered})
        _keep(settings, [told if each == alert else each for each in read(settings)])
    return told


def _folded_for(settings: Settings, sent: Alert) -> timedelta:
    """For how long others of its subject are folded into an alert that was sent."""
    usual = timedelta(minutes=settings.alerts.fold_minutes)
    # A condition of which no target took word yet is told again as soon as anything else.
    reached = not sent.delivered or any(sent.delivered)
    return max(usual, REMINDED) if reached and sent.subject.partition(" ")[0] in LASTING else usual


def send(settings: Settings, subject: str, body: str) -> tuple[bool, ...]:
    """Give a message to every target; whether each took it. One that does not is asked three times, and named in the log."""
    targets = settings.alerts.targets
    if not targets:
        return ()
    delivered = []
    for number, target in enumerate(targets, start=1):
        said = _opened(target.get_secret_value(), number)
        done = bool(said.notify(title=f"dspy-toolkit: {subject}", body=body))
        for pause in PAUSES if not done else ():
            time.sleep(pause)
            if done := bool(said.notify(title=f"dspy-toolkit: {subject}", body=body)):
                break
        if not done:
            log.warning("Alert %r was not taken by alerts.targets, number %d.", subject, number)
        delivered.append(done)
    return tuple(delivered)


def _opened(target: str, number: int) -> Any:
    """An Apprise that knows one address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its plug-ins import modules that Python 3.13 has no more
        try:
            import apprise
        except ImportError:
            raise SettingsError("alerts.targets needs Apprise. Run `pip install apprise`.") from None
        said = apprise.Apprise()
        if not said.add(target):
            raise SettingsError(
                f"alerts.targets, number {number}, is no address that Apprise knows, such as json://host/path."
            )
    return said


def read(settings: Settings) -> list[Alert]:
    """All that are kept, the oldest first. A line that cannot be read is passed over with a warning: alerts must go on."""
    file = settings.path(FILE)
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else (), start=1):
        try:
            found.append(Alert.model_validate_json(line))
        except ValidationError:
            log.warning("%s, line %d cannot be read.", file, number)
    return found


def _keep(settings: Settings, alerts: list[Alert]) -> None:
    folded = [place for place, each in enumerate(alerts) if not each.sent]
    gone = set(folded[: max(len(alerts) - KEPT, 0)])
    kept = [each for place, each in enumerate(alerts) if place not in gone][-KEPT:]
    lines = (json.dumps(each.model_dump(mode="json"), ensure_ascii=False) + "\n" for each in kept)
    write_file(settings.path(FILE), "".join(lines).encode())
