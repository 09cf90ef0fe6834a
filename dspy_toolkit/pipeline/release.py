"""Making a program a version of its project and the champion, with a manifest that says where it came from.

Covered: the baseline as version 1, and a candidate that passed the gate. Each version hangs on an MLflow run,
opened for it here; when the version cannot be kept or promoted, that run is closed as failed and the champion stays.

Not covered: who passes the gate (`compare`), how versions and aliases are kept (`dspy_toolkit.registry`), and what else is
written down of a run (`record`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dspy_toolkit.code_version import versions
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.source import parent_of
from dspy_toolkit.pipeline.tuned_on import rows_tuned_on
from dspy_toolkit.pipeline.unchanged import check_unchanged
from dspy_toolkit.project import ChampionPart, Project, ProjectRef
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Decision, Manifest, champion, promote, save_version, undo
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.registry.manifest import KeptVerdict
from dspy_toolkit.registry.references import lasting_location
from dspy_toolkit.registry.unfinished import INTENT_TAG
from dspy_toolkit.run import ReleasedRun, Run
from dspy_toolkit.tracking.runs import close_failed, open_run, record_run

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

FIRST_SECONDS = 300.0
"""How long to wait while another run makes a project's first version."""


def release_baseline(context: Context, ref: ProjectRef) -> ProjectRef:
    """Make the baseline version 1 and the champion, where nothing is live yet; `ref` with what is live.

    It is what the first candidate has to beat, what answers meanwhile, and where rolling back ends.

    Raises:
        ProjectError: the program, its metric or its models have changed since the run began.
        RegistryError: it could not be kept.
    """
    settings, name = context.settings, ref.name
    if ref.champion.version is not None:
        return ref
    check_unchanged(context, ref.program)
    # Of two runs that begin at once, the second finds the first one's.
    with registry_lock(settings, FIRST_SECONDS, "first-champion.lock"):
        if champion(settings, name).version is None:
            _promote_baseline(context, ref.program.model)
    return ref.model_copy(update={"champion": champion(settings, name)})


def _promote_baseline(context: Context, model: str) -> None:
    project, settings = context.project, context.settings
    program, run_name = project.build(), f"baseline of {project.name}"
    made = Manifest(**_origin(project, program), optimizer="none", model=model)
    run_id = open_run(settings, project.name, run_name)
    saved = _save_and_promote(settings, state_of(program), made, run_id, compared_with=ChampionPart())
    record_run(settings, project.name, run_name, {"optimizer": "none"}, {}, tags={"version": saved}, run_id=run_id)


def release(context: Context, run: Run) -> ReleasedRun:
    """Keep and promote a candidate that passed the gate; a failure on the way leaves the old champion in place.

    Raises:
        ProjectError: the program, its metric or its models have changed since the run began.
        RegistryError: the version could not be kept or promoted.
    """
    settings, name, live = context.settings, run.ref.name, run.ref.champion
    decision = Decision(
        outcome=run.comparison.outcome,
        reason=run.comparison.reason,
        version=None,
        previous=live.version,
        promoted_for=run.comparison.promoted_for,
    )
    if decision.outcome == "promoted":
        check_unchanged(context, run.ref.program)
        state, manifest = context.store.read_json(run.compiled.program), manifest_of(context, run)
        # All that recording needs: were this process killed after the promotion, the next run would record it.
        intent = context.store.save_json(run)
        run_id = open_run(settings, name, run.name, {INTENT_TAG: intent.sha256})
        saved = _save_and_promote(settings, state, manifest, run_id, compared_with=live)
        decision = decision.model_copy(update={"version": saved, "run_id": run_id})
    return ReleasedRun(**dict(run), decision=decision)


def _save_and_promote(
    settings: Settings, state: dict[str, Any], manifest: Manifest, run_id: str, compared_with: ChampionPart
) -> int:
    """The new version's number. A failure on the way takes the promotion back and closes the run as failed."""
    saved = None
    try:
        saved = save_version(settings, manifest.project, state, manifest, run_id)
        promote(settings, manifest.project, saved, compared_with=compared_with)
    except BaseException:
        try:
            if saved is not None:
                undo(settings, manifest.project, saved)
        except RegistryError as error:  # the first error is the one to raise; the next run looks after this one
            log.warning("%s", error)
        close_failed(settings, run_id)
        raise
    return saved


def undo_release(context: Context, decision: Decision) -> None:
    """Take back the promotion of `decision`, unless another version is live by now. Raises RegistryError."""
    taken_back = decision.version is not None and undo(context.settings, context.project.name, decision.version)
    if taken_back and decision.run_id is not None:
        close_failed(context.settings, decision.run_id)  # it may have been recorded already, as promoted


def manifest_of(context: Context, run: Run) -> Manifest:
    """Where the compiled program came from, and how it scored."""
    project = context.project
    reports: dict[str, Any] = {"compiled": run.compiled.model_dump(mode="json", exclude={"program"})}
    seen = run.comparison
    for key, report in (
        ("candidate_val", seen.candidate_val),
        ("champion_val", seen.champion_val),
        ("comparison", seen.sealed),
    ):
        if report is not None:
            reports[key] = report.model_dump(mode="json")
    return Manifest(
        **_origin(project, project.build()),
        optimizer=run.compiled.optimizer,
        optimizer_settings=run.choice.settings.model_dump(exclude={"optimizer"}),
        model=run.ref.program.model,
        split_sha256={name: getattr(run.dataset, name).sha256 for name in ("train", "val", "sealed")},
        trained_rows=tuple(sorted(rows_tuned_on(context, run))),
        reports=reports,
        parent=parent_of(run.ref.start, project),
        previous_champion=run.ref.champion.version,
        promoted_for=seen.promoted_for or "quality",
        anchor=seen.anchor if seen.promoted_for == "tokens" else None,
        verdict=KeptVerdict(
            outcome=seen.outcome,
            reason=seen.reason,
            champion=run.ref.champion.version,
            champion_sha256=run.ref.champion.sha256 or "",
        ),
    )


def _origin(project: Project, program: dspy.Module) -> dict[str, Any]:
    """What every manifest of a project says."""
    return {
        "project": project.name,
        "location": lasting_location(project.location),
        "signature_fields": {name: str(annotation) for name, annotation in fields_of(program).items()},
        "signature_sha256": signature_hash(program),
        "metric": name_of(project.metric),
        "packages": versions(),
    }
