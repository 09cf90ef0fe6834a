"""A program that is loaded and can answer: the same one, run the same way, as `dspy-toolkit predict` has.

Covered: loading by name, with what its project's settings say of the model; whether it runs on an event loop; trying it
once on a kept example, within a time. Not covered: running it for a request (`running`), noticing another champion
(`watching`).
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import DeadlineExceeded, ProgramError, ToolkitError
from dspy_toolkit.lm.litellm.provider import Calls
from dspy_toolkit.project.states import predictor_states
from dspy_toolkit.serving.schemas import ProgramFields, program_fields

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.lm import Connection
    from dspy_toolkit.lm.meter import MeteredLM
    from dspy_toolkit.project import Project
    from dspy_toolkit.registry import Manifest
    from dspy_toolkit.settings import Settings


NOTICE_SECONDS = 0.1
"""Within which a trial notices that the server stops."""


@dataclass(frozen=True, eq=False)
class Live:
    """A program, the models that it asks, and its fields. It never changes: another version is another object."""

    name: str
    """The project's."""
    version: int | None
    """None: the project's own program, which nothing has optimized."""
    program: dspy.Module
    manifest: Manifest | None
    project: Project
    connection: Connection
    fields: ProgramFields
    asynchronous: bool
    """Whether it has an `aforward` of its own."""

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def model(self) -> str:
        """The task model's full name."""
        return self.connection.model


def load_live(settings: Settings, reference: str, location: str = "", model: str | None = None) -> Live:
    """Load a program; takes a second or so, and a thread that may wait.

    Args:
        settings: the home and the registry.
        reference: as `dspy_toolkit.registry.programs.load_program` takes it.
        location: where its project is, where its name is not enough.
        model: in place of the one that the settings name for the project.

    Raises:
        RegistryError, ProjectError, ProgramError, ModelError: it cannot be used.
    """
    from dspy_toolkit.lm import connect
    from dspy_toolkit.registry import champion, find_version
    from dspy_toolkit.registry.programs import load_program
    from dspy_toolkit.registry.references import is_location, is_saved, is_version, project_name

    version: int | None = None
    if is_version(reference):
        version = find_version(settings, reference).version
        # By its number: the alias may move between this line and the next.
        reference = f"{reference.partition('@')[0]}@{version}"
    elif not is_saved(reference):
        name = project_name(reference)
        if (version := champion(settings, name).version) is not None:
            location = location or (reference if is_location(reference) else "")
            reference = f"{name}@{version}"
    loaded = load_program(settings, reference, location)
    its_own = settings.for_project(loaded.project.name)
    if model is not None:
        # A key and an address belong to the model that they were written beside.
        said = its_own.lm.model_dump(exclude_unset=True, exclude={"model", "api_key", "api_base"})
        its_own = its_own.model_copy(update={"lm": type(its_own.lm).model_validate({**said, "model": model})})
    return Live(
        name=loaded.project.name,
        version=version,
        program=loaded.program,
        manifest=loaded.manifest,
        project=loaded.project,
        connection=connect(its_own),
        fields=program_fields(loaded),
        asynchronous=has_aforward(loaded.program),
    )


def has_aforward(program: dspy.Module) -> bool:
    """Whether `acall` runs what `program(…)` runs: an `aforward` that is inherited from above an own `forward` does not."""
    classes = type(program).__mro__
    sync = next((number for number, kind in enumerate(classes) if "forward" in vars(kind)), None)
    own = next((number for number, kind in enumerate(classes) if "aforward" in vars(kind)), None)
    return own is not None and (sync is None or own <= sync)


def kept_example(live: Live) -> dict[str, Any]:
    """Inputs to try a program on: those of its first demonstration that has them all, else made up."""
    for part in predictor_states(live.program.dump_state()).values():
        for demo in part.get("demos") or []:
            if all(name in demo for name in live.fields.input_names):
                return {name: demo[name] for name in live.fields.input_names}
    return live.fields.example


class Abandoned(Exception):
    """Nobody waits for this run any more."""


def lm_for(live: Live, calls: Calls) -> MeteredLM:
    """The task model for one run of a program. Once `calls` are given up, each further call raises Abandoned."""

    def check(_: int) -> None:
        if calls.cancelled:
            raise Abandoned

    return live.connection.lm.for_one_request(check, calls)


def smoke_test(live: Live, seconds: float, stopping: threading.Event) -> None:
    """Let a program answer once, by its model and not from the cache, so that an adapter is loaded too.

    Args:
        seconds: that this may take. What it asked an engine for by then is given up; its own code goes on in a thread.
        stopping: once it is set, nobody waits for the answer.

    Raises:
        ProgramError: it does not. It is retryable where the time was over, or the model failed in a way that says nothing
            of the program: then another try may succeed.
    """
    calls, answer = Calls(), Future[None]()

    def ask() -> None:
        try:
            _ask_once(live, calls)
        except BaseException as error:  # isolation boundary: a version that is being tried may raise anything
            answer.set_exception(error)
        else:
            answer.set_result(None)

    end = time.monotonic() + seconds
    threading.Thread(target=ask, name=f"trying {live}", daemon=True).start()
    while not answer.done() and not stopping.is_set() and (left := end - time.monotonic()) > 0:
        wait([answer], min(left, NOTICE_SECONDS))
    if not answer.done():
        calls.cancel()
        raise _refusal(live, DeadlineExceeded(f"There was no answer in {seconds:g} s (serving.deadline_seconds)."))
    if (error := answer.exception()) is not None:
        raise _refusal(live, error) from error


def _ask_once(live: Live, calls: Calls) -> None:
    import dspy

    # By the same types as a request: the made-up values are plain JSON.
    inputs = live.fields.inputs.validate_python(kept_example(live))
    lm = lm_for(live, calls)
    lm.cache = False
    with live.connection.context(lm), dspy.context(trace=[]):
        live.program(**inputs)


def _refusal(live: Live, error: BaseException) -> ProgramError:
    from dspy_toolkit.lm import root_error

    found = error if isinstance(error, ToolkitError) else root_error(error)
    why = str(found) if found is not None else f"{type(error).__name__}: {str(error)[:200]}"
    refusal = ProgramError(f"{live} does not answer its kept example: {why}")
    refusal.retryable = found is not None and found.retryable
    return refusal
