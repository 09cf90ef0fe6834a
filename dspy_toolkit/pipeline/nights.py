"""What a search leaves for the next one: its best candidates and all that it tried, one line for each recorded search.

So a night is not the one before again: another seed draws other rows, the search starts from the champion and the best so far
as well as from the baseline, and a prompt that was scored once is no candidate any more. What was tried counts as long as
the program, its metric, its models and its settings are what they were.

The file is `searches/PROJECT.jsonl` in the home. A run that was killed has no line, so that the same command goes on with the
same night. Without the file the next night begins anew, and finds its replies in the cache.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from dspy_toolkit.durable import append_lines
from dspy_toolkit.errors import StoreError
from dspy_toolkit.locks import held
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.tuned_on import rows_tuned_on
from dspy_toolkit.project import ChampionPart, NightPart, ProgramPart, StartPart
from dspy_toolkit.registry.programs import live_program
from dspy_toolkit.run import Compilation
from dspy_toolkit.store import Frozen, Ref

STARTS = 4
"""The best candidates so far that a search starts from, beside the champion."""
LOCK_SECONDS = 60


class Night(Frozen):
    """One recorded search: a line of the file."""

    search: str
    """What it was; see `record.search_of`."""
    program: str
    """The fingerprint of the program, its metric, models and settings."""
    best: tuple[tuple[float, Ref], ...]
    """(gain over the baseline on validation, state) of its best candidates."""
    tried: tuple[str, ...]
    """Hashes of its candidates' prompts."""
    trained_rows: Ref
    """`_row` hashes that its candidates were tuned on, as a JSON list."""


def find_night(context: Context, program: ProgramPart, live: ChampionPart) -> NightPart:
    """What the next search starts from.

    Raises:
        StoreError: the file cannot be read, or a line of it.
        RegistryError, ProjectError: the champion cannot be loaded.
    """
    project, store = context.project, context.store
    nights = _read(_path(context))
    same = [night for night in nights if night.program == program.fingerprint]
    starts = []
    champion = live_program(live, project, context.settings)
    # The baseline as version 1 is no start: every search begins with it.
    if prompt_of(champion.program) != prompt_of(project.build()):
        rows = champion.manifest.trained_rows if champion.manifest else ()
        starts.append(
            StartPart(
                name=f"{project.name}@{live.version}",
                state=store.save_json(state_of(champion.program)),
                trained_rows=store.save_json(sorted(rows)),
            )
        )
    best = sorted(
        ((gain, number, state, night) for number, night in enumerate(same) for gain, state in night.best),
        key=lambda found: (-found[0], found[1]),
    )
    for _, number, state, night in best[:STARTS]:
        if store.exists(state) and store.exists(night.trained_rows):
            starts.append(StartPart(name=f"search {number + 1}", state=state, trained_rows=night.trained_rows))
    tried = sorted({prompt for night in same for prompt in night.tried})
    return NightPart(number=len(nights), starts=tuple(starts), tried=store.save_json(tried) if tried else None)


def remember_night(context: Context, made: Compilation, search: str) -> None:
    """Write a recorded search down, once.

    Raises:
        StoreError: the file cannot be read or written.
    """
    compiled, path = made.compiled, _path(context)
    if not compiled.trials:
        return
    rows = context.store.save_json(sorted(rows_tuned_on(context, made)))
    night = Night(
        search=search,
        program=made.ref.program.fingerprint,
        best=tuple((best.gain, best.state) for best in compiled.best),
        tried=tuple(trial.prompt for trial in compiled.trials),
        trained_rows=rows,
    )
    with held(Path(f"{path}.lock"), LOCK_SECONDS):
        if all(each.search != search for each in _read(path)):
            append_lines(path, night.model_dump_json().encode() + b"\n")


def _path(context: Context) -> Path:
    return context.settings.path("searches", f"{context.project.name}.jsonl")


def _read(path: Path) -> list[Night]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}. Repair it, or remove it: the next search then begins anew."
        ) from error
    nights = []
    for number, line in enumerate(lines, 1):
        try:
            nights.append(Night.model_validate_json(line))
        except ValidationError:
            raise StoreError(
                f"{path}, line {number} cannot be read: {line[:80]!r}. Remove the line, or the file: the next search then "
                "begins anew."
            ) from None
    return nights
