"""A start from elsewhere: finding the program that `--from` names, and keeping what of it fits as a part of the run.

`router@champion`, `router@3`, a folder or a project is looked up once, when a run begins. What was carried over is then an
object of the store, so that a champion which moves meanwhile changes nothing, and steps are cached by its content.

Not covered: which fields fit (`dspy_toolkit.optimizers.generators.transfer`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.datasets.table import as_text
from dspy_toolkit.errors import ModelError, ProjectError
from dspy_toolkit.lm.ensembles import ensemble_of
from dspy_toolkit.lm.levers import adapter_of, pull
from dspy_toolkit.lm.models.adapters import find_adapter
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.neighbors import NeighborRows, neighbors_of, read_neighbors
from dspy_toolkit.optimizers.generators.transfer import transfer
from dspy_toolkit.optimizers.problem import Start
from dspy_toolkit.optimizers.states import fill, state_of
from dspy_toolkit.project import NightPart, Project, StartPart
from dspy_toolkit.project.states import predictor_states, prompts_of
from dspy_toolkit.registry import champion, find_version
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.registry.references import is_location, is_saved, is_version, project_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import dspy

    from dspy_toolkit.settings import Settings
    from dspy_toolkit.store import Ref, Store

log = logging.getLogger(__name__)

GIVEN = "the given program"
"""What a program that was handed over in Python is called."""


def find_start(reference: str | dspy.Module, project: Project, settings: Settings, store: Store) -> StartPart:
    """What `project` can take from another program, kept in the store.

    Args:
        reference: `project@champion`, `project@3`, a folder, a project (its champion, else its own program), or a live
            program.
        settings: the home and the registry.

    Raises:
        RegistryError: nothing has that name, or its files cannot be used.
        ProjectError: the other project cannot be found, or no predictor fits.
    """
    if isinstance(reference, str):
        name, loaded = _load(reference, project, settings)
        other, rows = loaded.program, loaded.manifest.trained_rows if loaded.manifest else ()
    else:
        name, other, rows = GIVEN, reference, ()
    carried = transfer(project.build(), other, name, project.renames)
    _drop_foreign_adapters(carried, settings, name)
    _drop_lost_rows(carried, store, name)
    return StartPart(name=name, state=store.save_json(state_of(carried)), trained_rows=store.save_json(sorted(rows)))


def _drop_foreign_adapters(program: dspy.Module, settings: Settings, name: str) -> None:
    """Take away adapters that were trained on other weights than those of the task's model."""
    for _, predictor in program.named_predictors():
        ensemble = ensemble_of(predictor)
        for prompt in (predictor, *(ensemble.members if ensemble else ())):
            if (sha256 := adapter_of(prompt)) is None:
                continue
            try:
                find_adapter(settings.path(), sha256, find_weights(settings.lm.model, settings.path()).sha256)
            except ModelError as error:
                log.warning("The adapter of %s stays behind: %s", name, error)
                pull(predictor, **{"ensemble": None} if prompt is not predictor else {"adapter": None})


def _drop_lost_rows(program: dspy.Module, store: Store, name: str) -> None:
    """Take away neighbours whose rows are not in this store: those of a program that was handed over may be in another."""
    for _, predictor in program.named_predictors():
        ensemble = ensemble_of(predictor)
        for prompt in (predictor, *(ensemble.members if ensemble else ())):
            if (asked := neighbors_of(prompt)) is not None and not store.exists(asked.ref):
                log.warning(
                    "The rows among which %s chooses demonstrations are not in this home, and stay behind.", name
                )
                pull(predictor, **{"ensemble": None} if prompt is not predictor else {"neighbors": None})


def start_programs(part: StartPart | None, night: NightPart, project: Project, store: Store) -> tuple[Start, ...]:
    """The programs that a search starts from, ready to be scored: the one from elsewhere first."""
    parts = (*([part] if part else ()), *night.starts)
    return tuple(Start(fill(project.build(), store.read_json(each.state)), f"from {each.name}") for each in parts)


def trained_rows(
    part: StartPart | None, night: NightPart, sealed: Ref, spec: DatasetSpec, store: Store
) -> frozenset[str]:
    """The `_row` hashes that must not test what comes of the programs that a search starts from: those that they were tuned
    on, and of the sealed rows those whose inputs are in a demonstration that was carried over from elsewhere, or in a row among
    which it chooses demonstrations (hashes differ where a field has another name there).
    """
    own = {row for each in night.starts for row in store.read_json(each.trained_rows)}
    if part is None:
        return frozenset(own)
    shown = {
        tuple(as_text(demo[name]) for name in spec.inputs)
        for predictor in predictor_states(store.read_json(part.state)).values()
        for prompt in prompts_of(predictor)
        for demo in (*prompt["demos"], *_rows_of(prompt, store))
        if all(name in demo for name in spec.inputs)
    }
    frame = store.read_frame(sealed)
    asked = (tuple(as_text(case[name]) for name in spec.inputs) for case in examples(frame, spec))
    found = {str(row) for row, inputs in zip(frame["_row"], asked, strict=True) if inputs in shown}
    return frozenset(store.read_json(part.trained_rows)) | found | own


def _rows_of(prompt: Mapping[str, Any], store: Store) -> Iterator[dict[str, Any]]:
    """The rows among which a predictor chooses demonstrations, as demonstrations. Args: prompt: of `prompts_of`."""
    if given := prompt.get("neighbors"):
        asked = read_neighbors(given)
        for row in NeighborRows.model_validate(store.read_json(asked.ref)).rows:
            yield {asked.fields.get(name, name): value for name, value in row.values.items()}


def parent_of(part: StartPart | None, project: Project) -> int | str | None:
    """`part` as a manifest's parent: a version of this project by its number, any other by its name."""
    if part is None:
        return None
    name, _, version = part.name.rpartition("@")
    return int(version) if name == project.name and version.isdigit() else part.name


def _load(reference: str, project: Project, settings: Settings) -> tuple[str, LoadedProgram]:
    """(a name that means the same tomorrow, the program)."""
    if is_version(reference):
        found = find_version(settings, reference)
        name = f"{found.project}@{found.version}"
        return name, _read(name, project, settings)
    if is_saved(reference):
        loaded = _read(reference, project, settings)
        manifest = loaded.manifest
        return f"{manifest.project}@sha256:{manifest.program_sha256[:12]}" if manifest else loaded.project.name, loaded
    name = project_name(reference)
    if (live := champion(settings, name).version) is not None:
        name = f"{name}@{live}"
        return name, load_program(settings, name, reference if is_location(reference) else "")
    return name, load_program(settings, reference)


def _read(reference: str, project: Project, settings: Settings) -> LoadedProgram:
    try:
        return load_program(settings, reference)
    except ProjectError:
        if not project.location:
            raise
        # Its project is not here. One with the same fields, such as the same project elsewhere, fits without it.
        return load_program(settings, reference, project.location)
