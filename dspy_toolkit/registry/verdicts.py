"""Promoting a version by the verdict that is kept with it, or past the gate with a reason.

A verdict holds for the champion that it was a comparison with, known by the sha256 of its program: in another home too, and
again after a rollback. One that was reached after the version was saved (`dspy_toolkit.pipeline.reprove`) is a tag of the
version, and goes before the one in its manifest.

Not covered: reaching a verdict (`dspy_toolkit.gate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry.manifest import KeptVerdict, Manifest
from dspy_toolkit.registry.promotion import champion, promote
from dspy_toolkit.registry.versions import CHAMPION, find_version, load_version
from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.mlflow_client import session

if TYPE_CHECKING:
    from dspy_toolkit.project import ChampionPart
    from dspy_toolkit.settings import Settings

VERDICT = "verdict"
"""Tag of a version: a `KeptVerdict` as JSON."""
LONGEST_REASON = 1000
"""Characters of a reason that are kept."""


class Promotion(Frozen):
    """How a version became the champion."""

    project: str
    version: int
    replaced: int | None
    """The champion before; None when there was none."""
    verdict: KeptVerdict | None
    forced: str = ""
    """Why it was promoted past the gate."""


def promote_by_verdict(settings: Settings, reference: str, *, force: bool = False, reason: str = "") -> Promotion:
    """Make a version the champion where the verdict kept with it says that it is better than today's champion.

    Its files are read first: a version that cannot be loaded does not become the champion. Promoting the champion changes
    nothing.

    Args:
        settings: the home and the registry.
        reference: `project@3`.
        force: promote it whatever the verdict says.
        reason: why it is forced, for whoever looks later; kept with the version.

    Raises:
        RegistryError: no such version, its files cannot be used, no verdict that holds, or force without a reason.
    """
    reason = " ".join(reason.split())
    if force and not reason:
        raise RegistryError(f'{reference} is not promoted past the gate without a reason. Add --reason "…".')
    if reason and not force:
        raise RegistryError("A reason is for a promotion past the gate. Add --force, or leave the reason out.")
    found = find_version(settings, reference)
    verdict = verdict_of(settings, reference, load_version(settings, reference)[1])
    live = champion(settings, found.project)
    if CHAMPION in found.aliases:
        return Promotion(project=found.project, version=found.version, replaced=found.previous, verdict=verdict)
    name = f"{found.project}@{found.version}"
    if not force and (why_not := _why_not(name, verdict, live, found.optimizer)):
        raise RegistryError(why_not)
    # A comparison with another champion than the one that is live when the alias moves says nothing about that one.
    checked = None if force else live
    forced = reason[:LONGEST_REASON]
    replaced = promote(settings, found.project, found.version, compared_with=checked, forced=forced)
    return Promotion(project=found.project, version=found.version, replaced=replaced, verdict=verdict, forced=forced)


def verdict_of(settings: Settings, reference: str, manifest: Manifest) -> KeptVerdict | None:
    """The verdict kept with a version: the tag's, else its manifest's.

    Raises:
        RegistryError: no such version, or the tag holds no verdict.
    """
    found = find_version(settings, reference)
    with session(settings, f"Cannot read the verdict on {reference}") as mlflow:
        said = mlflow.get_model_version(found.project, str(found.version)).tags.get(VERDICT)
    if not said:
        return manifest.verdict
    try:
        return KeptVerdict.model_validate_json(said)
    except ValidationError as error:
        raise RegistryError(
            f"The tag {VERDICT} of {reference} holds no verdict: {error.errors()[0]['msg']}. "
            f"Run `dspy-toolkit programs reprove {found.project}@{found.version}`."
        ) from None


def keep_verdict(settings: Settings, project: str, version: int, verdict: KeptVerdict) -> None:
    """Keep a verdict that was reached after the version was saved. Raises RegistryError."""
    short = verdict.model_copy(update={"reason": verdict.reason[:LONGEST_REASON]})
    with session(settings, f"The verdict on {project}@{version} could not be kept") as mlflow:
        mlflow.set_model_version_tag(project, str(version), VERDICT, short.model_dump_json())


def _why_not(name: str, verdict: KeptVerdict | None, live: ChampionPart, optimizer: str) -> str:
    """Why a version may not be promoted; empty where it may."""
    if verdict is None:
        if (
            live.version is None and optimizer == "none"
        ):  # the project's own program: what the first candidate has to beat
            return ""
        why = f"{name} was never compared with a champion."
    elif verdict.outcome != "promoted":
        why = f"{name} did not pass the gate: {verdict.reason}"
    elif live.version is None or _same(verdict, live):
        return ""
    else:
        what = "the project's own program"
        if verdict.champion is not None:
            what = f"version {verdict.champion}"
        elif verdict.champion_sha256:
            what = "the champion of another home"
        why = f"{name} passed the gate against {what}, and the champion is version {live.version}."
    return (
        f"{why} Run `dspy-toolkit programs reprove {name}`, which asks the gate; "
        'or promote it all the same with --force --reason "…".'
    )


def _same(verdict: KeptVerdict, live: ChampionPart) -> bool:
    """Whether a verdict is of a comparison with today's champion."""
    if verdict.champion_sha256:
        return verdict.champion_sha256 == live.sha256
    return verdict.champion == live.version
