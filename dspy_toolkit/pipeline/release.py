"""Making a program a version of its project and the champion, with a manifest that says where it came from.

Covered: the project's own program as version 1, and a candidate that passed the gate. Each version hangs on an MLflow run,
opened for it here; when the version cannot be kept or promoted, that run is closed as failed and the champion stays.

Not covered: who passes the gate (`dspy_toolkit.pipeline.compare`), how versions and aliases are kept (`dspy_toolkit.registry`), and
what else is written down of a run (`dspy_toolkit.pipeline.record`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.code_version import versions
from dspy_toolkit.lm.connection import model_names
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.pipeline.source import parent_of, trained_rows
from dspy_toolkit.project import ChampionPart, Project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Decision, Manifest, champion, promote, save_version
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.registry.programs import lasting_location
from dspy_toolkit.tracking.runs import close_failed, open_run, record_run

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.pipeline.record import Run
    from dspy_toolkit.settings import Settings
    from dspy_toolkit.store import Store

FIRST_SECONDS = 300.0
"""How long to wait while another run makes a project's first version."""


def ensure_champion(project: Project, settings: Settings) -> None:
    """Where nothing is live yet, make the project's own program version 1 and the champion.

    Raises:
        RegistryError: it could not be kept.
    """
    if champion(settings, project.name).version is not None:
        return
    # Of two runs that begin at once, the second finds the first one's.
    with registry_lock(settings, FIRST_SECONDS, "first-champion.lock"):
        if champion(settings, project.name).version is None:
            _make_champion(project, settings)


def _make_champion(project: Project, settings: Settings) -> None:
    program, run_name = project.build(), f"{project.name} as it is"
    made = Manifest(**_origin(project, program), optimizer="none", model=model_names(settings)[0])
    run_id = open_run(settings, project.name, run_name)
    try:
        saved = save_version(settings, project.name, state_of(program), made, run_id)
        promote(settings, project.name, saved, compared_with=ChampionPart())
    except BaseException:
        close_failed(settings, run_id)
        raise
    record_run(settings, project.name, run_name, {"optimizer": "none"}, {}, tags={"version": saved}, run_id=run_id)


def release(run: Run, project: Project, settings: Settings, store: Store) -> tuple[Decision, str | None]:
    """Keep and promote a program that passed the gate; (the decision, the MLflow run that holds the version).

    Raises:
        RegistryError: the version could not be kept or promoted; the old champion stays.
    """
    live, challenged = run.ref.champion, run.challenge
    if challenged.outcome != "promoted":
        decision = Decision(outcome=challenged.outcome, reason=challenged.reason, version=None, previous=live.version)
        return decision, None
    run_id = open_run(settings, project.name, run.name)
    try:
        state = store.read_json(run.compiled.program)
        saved = save_version(settings, project.name, state, manifest_of(run, project, store), run_id)
        promote(settings, project.name, saved, compared_with=live)
    except BaseException:
        close_failed(settings, run_id)
        raise
    decision = Decision(outcome="promoted", reason=challenged.reason, version=saved, previous=live.version)
    return decision, run_id


def manifest_of(run: Run, project: Project, store: Store) -> Manifest:
    """Where the compiled program came from, and how it scored."""
    rows = [store.read_frame(part)["_row"] for part in (run.dataset.train, run.dataset.val)]
    inherited = trained_rows(run.ref.start, run.dataset.sealed, project.dataset, store)
    reports: dict[str, Any] = {"compiled": run.compiled.model_dump(mode="json", exclude={"program"})}
    for name in ("candidate_val", "champion_val", "comparison"):
        if (report := getattr(run.challenge, name)) is not None:
            reports[name] = report.model_dump(mode="json")
    return Manifest(
        **_origin(project, project.build()),
        optimizer=run.compiled.optimizer,
        optimizer_settings=run.choice.settings,
        model=run.ref.program.model,
        split_sha256={name: getattr(run.dataset, name).sha256 for name in ("train", "val", "sealed")},
        trained_rows=tuple(sorted({*inherited, *(str(row) for part in rows for row in part)})),
        reports=reports,
        parent=parent_of(run.ref.start, project),
        previous_champion=run.ref.champion.version,
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
