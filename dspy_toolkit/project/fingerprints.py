"""What of a project can change a result, as small values that a cache can be keyed by.

A step takes only the parts that it depends on: changing a byte of the data leaves `ProgramPart` as it was, and changing
the metric leaves `DataPart`. A fingerprint is made of contents alone, never of paths, so it is the same in every
process and on every machine. Never cached itself: `resolve` reads everything each time.

Not covered: code that the program reaches in installed packages, beyond the versions of those named here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dspy_toolkit.code_version import versions
from dspy_toolkit.datasets.reading import read_file
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import models_of, source_of
from dspy_toolkit.project import signatures
from dspy_toolkit.project.definition import Project
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Frozen, Ref, digest
from dspy_toolkit.user_sources import text_of

DATA_CODE = ("python", "dspy-toolkit sources", "numpy", "pandas", "pyarrow", "pydantic")
"""Of `versions`: what reads, checks and splits rows."""


class DataPart(Frozen):
    """All that the prepared dataset depends on."""

    project: str
    location: str
    fingerprint: str
    """sha256 over the file's bytes and kind, the spec, the columns' types, the data settings, and the versions of
    DATA_CODE."""


class ProgramPart(Frozen):
    """All that a program's answers and its optimization depend on, besides the rows."""

    project: str
    location: str
    model: str
    """The task model, with its weights hash."""
    reflection_model: str
    """The model that writes instructions, with its weights hash."""
    fingerprint: str
    """sha256 over the code and state of the program, the metric's code and options, the bytes of the declared files, both
    models and the metric's own, temperature, max_tokens, the seed, and `code_version.versions`."""


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


class ProjectRef(Frozen):
    """A project as it was when a run began."""

    name: str
    location: str
    data: DataPart
    program: ProgramPart
    champion: ChampionPart
    start: StartPart | None = None
    """None: the search starts from the project's own program."""
    false_promotion_rate: float = 0.05
    """Of the gate, over the life of the sealed rows; the settings'."""

    @property
    def project(self) -> str:
        """The project's name."""
        return self.name


def resolve(
    project: Project,
    settings: Settings,
    *,
    model: str,
    reflection_model: str,
    champion: ChampionPart,
    start: StartPart | None = None,
) -> ProjectRef:
    """Read everything of `project` that can change a result.

    Args:
        settings: those in force for this project (`Settings.for_project` already applied).
        model: the task model's name, with its weights hash.
        reflection_model: the same of the model that writes instructions.
        champion: what is live now.
        start: what the search starts from, if not from the project's own program.

    Raises:
        DatasetError: the data file is missing or cannot be read.
        ProjectError: the program cannot be made, or a declared file is missing or cannot be read.
        ModelNotFound: the metric names a model that is not there.
    """
    program = project.build()
    where = {"project": project.name, "location": project.location}
    spec = project.dataset
    fields = signatures.fields_of(program)
    data = digest(
        read_file(project.data_path),
        project.data_path.suffix.lower(),
        spec.model_dump(mode="json", exclude={"source"}),
        {name: signatures.schema_of(fields[name]) for name in (*spec.inputs, *spec.outputs) if name in fields},
        settings.data,
        {name: versions().get(name) for name in DATA_CODE},
    )
    made_of = fingerprint_program(project, settings, model=model, reflection_model=reflection_model)
    return ProjectRef(
        name=project.name,
        location=project.location,
        data=DataPart(**where, fingerprint=data),
        program=ProgramPart(**where, model=model, reflection_model=reflection_model, fingerprint=made_of),
        champion=champion,
        start=start,
        false_promotion_rate=settings.optimize.false_promotion_rate,
    )


def fingerprint_program(project: Project, settings: Settings, *, model: str, reflection_model: str) -> str:
    """sha256 over all that `ProgramPart.fingerprint` names. Raises as `resolve` does."""
    program = project.build()
    # DSPy's own modules are in its version; a user's count by their code.
    modules = {type(module) for _, module in program.named_sub_modules()}
    code = {text_of(module) for module in modules if not module.__module__.startswith("dspy.")}
    return digest(
        [project.code, text_of(project.program), *sorted(code)],
        source_of(project.metric),
        {name: _sha256(path) for name, path in project.declared_files.items()},
        signatures.signature_hash(program),
        json.loads(json.dumps(program.dump_state(), default=str)),
        [model, reflection_model, *_judges(project, settings)],
        settings.lm.model_dump(mode="json", include={"temperature", "max_tokens"}),
        settings.optimize.seed,
        versions(),
    )


def _judges(project: Project, settings: Settings) -> list[str]:
    """The models that the metric asks, with their weights' hashes."""
    models = models_of(project.metric)
    if not models:
        return []
    from dspy_toolkit.lm.connection import full_name

    return [full_name(model, settings) for model in models]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror or error}. Make it readable.") from error
