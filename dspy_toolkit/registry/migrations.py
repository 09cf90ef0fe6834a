"""Manifests of earlier schemas, made into today's: one small function a step, in a list that `migration` fills.

A step takes a whole manifest of one schema as a dictionary and returns one of the next. Once released it never changes: what it
needs stands in it, not in code that goes on. A sample of each schema, as it was written then, is kept in
`tests/registry/schemas`.

Covered: any manifest that a released toolkit wrote. Not covered: a project whose fields have changed (`fitting`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Step = Callable[[dict[str, Any]], dict[str, Any]]

STEPS: dict[int, Step] = {}
"""Schema version → what makes the next one of it."""


def migration(version: int) -> Callable[[Step], Step]:
    """Enter a step from schema `version` to the next. There is one for each."""

    def enter(step: Step) -> Step:
        if version in STEPS:
            raise ValueError(f"There are two migrations from schema {version}.")
        STEPS[version] = step
        return step

    return enter


def migrated(manifest: dict[str, Any], to: int) -> dict[str, Any]:
    """A manifest of schema `to`; the one that is given is not changed.

    Args:
        manifest: of an earlier schema, or of `to`. One that says no schema is of the first.
        to: a schema version, from 1.
    """
    made = dict(manifest)
    version = made.get("schema_version", 1)
    while isinstance(version, int) and version in STEPS and version < to:
        made = STEPS[version](made)
        version += 1
        made["schema_version"] = version
    return made


@migration(1)
def keep_the_verdict(manifest: dict[str, Any]) -> dict[str, Any]:
    """The gate's verdict was not kept: it follows from the evidence, by the rule of that time."""
    made = {**manifest, "verdict": None, "imported": None}
    reports = manifest.get("reports")
    seen = reports.get("comparison") if isinstance(reports, dict) else None
    if not isinstance(seen, dict) or not isinstance(low := seen.get("low"), int | float):
        return made
    anchored = seen.get("anchor_low")
    anchored = anchored if isinstance(anchored, int | float) else low
    ratio = seen.get("tokens_ratio")
    cheaper = isinstance(ratio, int | float) and ratio <= 0.9 and anchored > -0.01
    made["verdict"] = {
        "outcome": "promoted" if low > 0 or cheaper else "refused",
        "reason": "Weighed by an earlier version of the toolkit.",
        "champion": manifest.get("previous_champion"),
        "champion_sha256": "",
    }
    return made
