"""What of a project can change a result, as small values that a cache can be keyed by.

A step takes only the parts that it depends on: changing a byte of the data leaves `ProgramPart` as it was, and changing
the metric leaves `DataPart`. A fingerprint is made of contents alone, never of paths, so it is the same in every
process and on every machine. No key and no password is in one, not even hashed.

Not covered: what a program or metric reads without declaring it (`Project.files`), the environment's variables, the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

from dspy_toolkit.code_version import versions
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import models_of, source_of
from dspy_toolkit.project import signatures
from dspy_toolkit.project.definition import Project
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Frozen, Ref, digest
from dspy_toolkit.user_sources import text_of

DATA_CODE = ("python", "dspy-toolkit sources", "numpy", "pandas", "pyarrow", "pydantic")
"""Of `versions`: what reads, checks and splits rows."""
ELSEWHERE = frozenset({"optimizer", "budget", "false_promotion_rate"})
"""Settings of [optimize] that reach the steps which they concern as values of their own."""
NO_SAY = frozenset({"threads"})
"""Settings of [optimize] that change nothing: rows are put together in their own order, whatever is finished first."""


class Part(Frozen):
    """Some of what a result depends on."""

    project: str
    location: str
    fingerprint: str
    """sha256 over all of it."""
    made_of: dict[str, str] = {}
    """The same of each kind of thing in it, by its name, so that a change can be named."""


class DataPart(Part):
    """All that the prepared dataset depends on."""


class ProgramPart(Part):
    """All that a program's answers and its optimization depend on, besides the rows."""

    model: str
    """The task model, with its weights hash."""
    reflection_model: str
    """The model that writes instructions, with its weights hash."""


class ChampionPart(Frozen):
    """The version that is live; both None before there is one (a run makes it first)."""

    version: int | None = None
    sha256: str | None = None


class StartPart(Frozen):
    """A program from elsewhere that a search starts from, as it was when the run began."""

    name: str
    """`router@3`; a folder's is `router@sha256:` and the first digits, a project's own program `router`."""
    state: Ref
    """This project's program with the instructions and demonstrations that were carried over."""
    trained_rows: Ref
    """`_row` hashes that the program from elsewhere was tuned on, as a JSON list: none of them may test what comes of it."""


class NightPart(Frozen):
    """What earlier searches of this program have left for the next one."""

    number: int = 0
    """Recorded searches of the project so far. With the settings' seed it decides what is drawn."""
    starts: tuple[StartPart, ...] = ()
    """The champion, and the best candidates so far, the best first."""
    tried: Ref | None = None
    """Hashes of the prompts that were candidates already, as a JSON list."""


class ProjectRef(Frozen):
    """A project as it was when a run began."""

    name: str
    location: str
    data: DataPart
    program: ProgramPart
    champion: ChampionPart
    start: StartPart | None = None
    """A program from elsewhere; None where none was named."""
    night: NightPart = NightPart()
    false_promotion_rate: float = 0.05
    """Of the gate, over the life of the sealed rows; the settings'."""

    @property
    def project(self) -> str:
        """The project's name."""
        return self.name


AnyPart = TypeVar("AnyPart", bound=Part)


def data_part(project: Project, settings: Settings, content: bytes) -> DataPart:
    """The rows: the bytes and kind of their file, what is asked of them, and what reads them.

    Args:
        settings: those in force for this project (`Settings.for_project` already applied).
        content: the bytes of the project's file that are, or will be, parsed.

    Raises:
        ProjectError: the program cannot be made.
    """
    fields, spec = signatures.fields_of(project.build()), project.dataset
    types = {name: signatures.schema_of(fields[name]) for name in (*spec.inputs, *spec.outputs) if name in fields}
    made_of = {
        "data": digest(content, project.data_path.suffix.lower()),
        "dataset's description": digest(spec.model_dump(mode="json", exclude={"source"}), types),
        "settings": digest(settings.data),
        "installed packages": digest({name: versions().get(name) for name in DATA_CODE}),
    }
    return DataPart(**_where(project), fingerprint=digest(made_of), made_of=made_of)


def program_part(project: Project, settings: Settings) -> ProgramPart:
    """The program with its code and state, the metric with its code and options, the files that they read, every model that
    may be asked and how, the settings of a search, and all code below.

    Args:
        settings: those in force for this project (`Settings.for_project` already applied).

    Raises:
        ProjectError: the program cannot be made, a declared file is missing or cannot be read, or a module has changed since
            this process imported it.
        ModelNotFound: a model that the settings or the metric name is not there.
    """
    program = project.build()
    # DSPy's own modules are in its version; a user's count by their code.
    modules = {type(module) for _, module in program.named_sub_modules()}
    code = {text_of(module) for module in modules if not module.__module__.startswith("dspy.")}
    state = json.loads(json.dumps(program.dump_state(), default=str))
    models = _models(settings, models_of(project.metric))
    made_of = {
        "program": digest(
            project.code, text_of(project.program), sorted(code), signatures.signature_hash(program), state
        ),
        "metric": digest(source_of(project.metric)),
        "declared files": digest({name: _sha256(path) for name, path in project.declared_files.items()}),
        "models": digest(models),
        "settings": digest(settings.optimize.model_dump(mode="json", exclude={*ELSEWHERE, *NO_SAY})),
        "installed packages": digest(versions()),
    }
    names = {"model": models["lm"]["model"], "reflection_model": models["reflection"]["model"]}
    return ProgramPart(**_where(project), **names, fingerprint=digest(made_of), made_of=made_of)


def refuse_changed(began: AnyPart, read: Callable[[], AnyPart]) -> None:
    """Refuse to go on where a part is not what it was when the run began: what is cached under it must come from it.

    Args:
        read: gives the part as it is now.

    Raises:
        ProjectError: it has changed.
    """
    now = read()
    if now.fingerprint == began.fingerprint:
        return
    # What differs each time, as of a program made by chance, says nothing.
    if changed := sorted(_differing(began, now) - _differing(now, read())):
        raise ProjectError(
            f"The {' and the '.join(changed)} of {began.project} changed since this run began. Run it again."
        )


def _differing(one: Part, other: Part) -> set[str]:
    return {name for name, _ in one.made_of.items() ^ other.made_of.items()}


def _where(project: Project) -> dict[str, str]:
    return {"project": project.name, "location": project.location}


def _models(settings: Settings, named: Iterable[str]) -> dict[str, Any]:
    """Every model that may be asked, by role, and those that the metric names: what of them can change a reply."""
    from dspy_toolkit.lm.connection import full_name
    from dspy_toolkit.lm.litellm.fallback import backend_order
    from dspy_toolkit.lm.reply_cache import engine_settings, server_of
    from dspy_toolkit.lm.roles import Role, role_model

    roles = {role: role_model(settings, role) for role in get_args(Role)}
    roles |= {f"judge {model}": role_model(settings, "judge", model) for model in named}
    asked = {
        name: {
            "model": full_name(role.model, settings),
            "server": server_of(role.model, role.api_base),
            "temperature": role.temperature,
            "max_tokens": role.max_tokens,
            # A default gives way to what the model allows, which is in the version of its package.
            "stated": sorted(role.stated - {"timeout"}),
        }
        for name, role in roles.items()
    }
    backends = [(name, server_of(name)) for name in backend_order(settings.lm)]
    return {**asked, "engine": [backends, engine_settings(settings.lm)]}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror or error}. Make it readable.") from error
