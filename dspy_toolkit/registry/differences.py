"""Two programs of one project, side by side: instructions, demonstrations, levers, scores.

Covered: reading them from saved states. Not covered: whether one is better (`dspy_toolkit.gate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspy_toolkit.project.states import levers_in_words, predictor_states
from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.store import Frozen, canonical_json

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

MARKS = ("augmented", "dspy_uuid", "dspy_split")
"""Entries of a demonstration that DSPy uses internally, and puts into no prompt."""


class PredictorDifference(Frozen):
    """One predictor in two programs; an empty side where only the other has it."""

    name: str
    """Empty where it is the whole program."""
    instructions: tuple[str, str]
    levers: tuple[tuple[str, ...], tuple[str, ...]]
    """In words: format, label weights, adapter."""
    only_first: tuple[dict[str, Any], ...]
    """Demonstrations that the first program alone has."""
    only_second: tuple[dict[str, Any], ...]
    both: int
    """Demonstrations that they share."""

    @property
    def same(self) -> bool:
        """Whether the model is sent the same, but for the order of demonstrations."""
        alike = self.instructions[0] == self.instructions[1] and self.levers[0] == self.levers[1]
        return alike and not self.only_first and not self.only_second


class Difference(Frozen):
    """What `differences` found."""

    references: tuple[str, str]
    facts: dict[str, tuple[Any, Any]]
    """Optimizer, model, scores and the like, where at least one program has them: name → both sides."""
    predictors: tuple[PredictorDifference, ...]

    @property
    def same(self) -> bool:
        """Whether both send the model the same."""
        return all(predictor.same for predictor in self.predictors)


def differences(settings: Settings, first: str, second: str) -> Difference:
    """Compare two programs. Each is `project@champion`, `project@3`, a folder, or a project.

    Raises:
        RegistryError, ProjectError: one of them cannot be read.
    """
    from dspy_toolkit.registry.programs import load_state, own_state

    sides: list[tuple[dict[str, Any], Manifest | None]] = []
    for reference in (first, second):
        state, manifest = load_state(settings, reference)
        sides.append((state if manifest else own_state(settings, reference), manifest))
    (before, about_before), (after, about_after) = sides
    old, new = predictor_states(before), predictor_states(after)
    left, right = _facts(about_before), _facts(about_after)
    facts = {name: (left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])}
    return Difference(
        references=(first, second),
        facts=facts,
        predictors=tuple(_compare(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])),
    )


def score_of(manifest: Manifest, report: str) -> dict[str, Any] | None:
    """What a manifest's report measured: `mean` with its interval, or `delta` with its own; None where it has none.

    The sealed test's report is called `comparison`.
    """
    found = manifest.reports.get(report)
    return found if isinstance(found, dict) and ("mean" in found or "delta" in found) else None


def _facts(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"optimizer": "none"}
    facts: dict[str, Any] = {
        "optimizer": manifest.optimizer,
        "model": manifest.model,
        "metric": manifest.metric,
        "saved": manifest.created.isoformat(),
        "trained on rows": len(manifest.trained_rows),
    }
    if validated := score_of(manifest, "candidate_val"):
        facts["validation"] = validated.get("mean")
    if tested := score_of(manifest, "comparison"):
        candidate = tested.get("candidate")
        if isinstance(candidate, dict):
            facts["sealed"] = candidate.get("mean")
        facts["gain over its champion"] = tested.get("delta")
    if manifest.verdict:
        facts["verdict"] = manifest.verdict.outcome
    return facts


def _compare(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> PredictorDifference:
    before, after = _demos(old), _demos(new)
    return PredictorDifference(
        name=name,
        instructions=(_instructions(old), _instructions(new)),
        levers=(tuple(levers_in_words(old or {})), tuple(levers_in_words(new or {}))),
        only_first=tuple(demo for key, demo in before.items() if key not in after),
        only_second=tuple(demo for key, demo in after.items() if key not in before),
        both=len(before.keys() & after.keys()),
    )


def _instructions(part: Mapping[str, Any] | None) -> str:
    return str(part["signature"].get("instructions") or "") if part else ""


def _demos(part: Mapping[str, Any] | None) -> dict[bytes, dict[str, Any]]:
    shown = (
        {key: value for key, value in demo.items() if key not in MARKS} for demo in (part or {}).get("demos") or []
    )
    return {canonical_json(demo): demo for demo in shown}
