"""The route of advice: a configuration for a project that advises, from a description.

It asks the project's promoted program where there is one, and keyword rules else; what is measured is read, and nothing is run.
Reading and ranking take a second of this process, so they have threads of their own; of a request that is over, no step begins.

Not covered: running what is advised (`dspy-toolkit advise --probe` and `--try`), a user's own runs, and files of the server: a fact
of a request is a number.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dspy_toolkit.errors import ProjectError, ToolkitError, nearest
from dspy_toolkit.serving.edge import Backend, Route, as_json, backend, caller, note_texts
from dspy_toolkit.serving.problems import Problem
from dspy_toolkit.serving.programs import Live, load_live
from dspy_toolkit.serving.requests import check_lengths, deadline_of, parse, read_body, while_connected
from dspy_toolkit.serving.running import run

if TYPE_CHECKING:
    from dspy_toolkit.advising import Advisor
    from dspy_toolkit.advising.situation import Situation

log = logging.getLogger(__name__)
router = APIRouter(route_class=Route)
P = ParamSpec("P")
T = TypeVar("T")

THREADS = 2
"""In which advice is computed. It is Python throughout, so more would wait for each other."""


class AdviceBody(BaseModel):
    """What somebody has and wants."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field("", description="In their own words.")
    known: dict[str, str] = Field(
        {}, description="Fields of the situation, and numbers, by name, which count before the description."
    )
    tool: str = Field("", description="In whose format the configuration is written; the project's first by default.")


BODY = TypeAdapter(AdviceBody)


@router.post("/v1/projects/{name}/advise", tags=["projects"], summary="Advise on a project")
async def give_advice(name: str, request: Request) -> Response:
    """A configuration for the real tool, what to expect of it, why, and what was not known. `name`: lora, diffusion, clip, federated."""
    back = backend(request)
    owner = await caller(request, "predict")
    said = parse(await read_body(request, back.settings.serving.max_body_bytes), BODY)
    most = back.settings.serving.max_field_characters
    check_lengths({"description": said.description, **said.known, "tool": said.tool}, most)
    deadline = deadline_of(request, back.settings.serving.deadline_seconds)
    note_texts(request, inputs=said.model_dump())

    async def work() -> dict[str, object]:
        async with asyncio.timeout(deadline - time.monotonic()), back.admission.slot(owner):
            advisor, known = await _in_thread(back, _understood, name, said)
            described, read_by = await _read(back, advisor, said.description)
            return await _in_thread(back, _advise, advisor, said.tool, known, described, read_by)

    try:
        made = await while_connected(request, work())
    except ProjectError as error:
        raise Problem(422, "bad_fields", str(error)) from error
    note_texts(request, advice=made)
    return as_json(made)


def _understood(name: str, said: AdviceBody) -> tuple[Advisor, dict[str, str]]:
    """A project's advisor, and what is known by the names that it uses. Raises Problem, 404 or 422."""
    from dspy_toolkit.advising.advisor import advisor_names, load_advisor

    if name not in advisor_names():
        raise Problem(404, "no_such_project", f"No project of that name advises. Known: {', '.join(advisor_names())}.")
    advisor = load_advisor(name)
    fields = [*advisor.situation.model_fields, *advisor.given]
    known: dict[str, str] = {}
    for given, value in said.known.items():
        key = given.replace("-", "_")
        if key not in fields:
            raise Problem(422, "bad_fields", f"{given[:80]!r} is nothing that is asked here.{nearest(key, fields)}")
        if key in advisor.given and not _is_number(value):
            raise Problem(422, "bad_fields", f"{key}: a request can give a number only, and no file of the server.")
        known[key] = value
    return advisor, known


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False


async def _read(back: Backend, advisor: Advisor, description: str) -> tuple[Situation, str]:
    """As `dspy_toolkit.advising.advice.read_description`, by a program that stays loaded."""
    if not description.strip():
        return advisor.situation(), "options alone"
    live = await _in_thread(back, _reader, back, advisor.name)
    if live is None or live.manifest is None or live.manifest.optimizer == "none":
        rules = "keyword rules (no optimized program is promoted)"
        return advisor.situation.lenient(advisor.keywords(description)), rules
    # In a thread also where it has an `aforward`: what it does between its calls of the model would hold up the loop.
    answer = await run(replace(live, asynchronous=False), {"request": description}, back.advice)
    return advisor.situation.lenient(answer.prediction), f"the promoted program of {advisor.name}"


def _reader(back: Backend, name: str) -> Live | None:
    """A project's champion; None where nothing was promoted. Raises Problem, 503, where it cannot be loaded."""
    from dspy_toolkit.registry import champion

    entry = back.service.entries.get(name)
    if entry is not None and entry.follows:
        return entry.standing.live
    try:
        version = champion(back.settings, name).version
        if version is None:
            return None
        kept = back.readers.get(name)
        if kept is None or kept.version != version:
            kept = back.readers[name] = load_live(back.settings, f"{name}@{version}")
    except ToolkitError as error:
        log.warning("The program that reads descriptions for %s cannot be loaded: %s", name, error)
        raise Problem(503, "version_unusable", "The promoted program cannot be loaded. The log says why.") from error
    return kept


def _advise(
    advisor: Advisor, tool: str, known: dict[str, str], described: Situation, read_by: str
) -> dict[str, object]:
    from dspy_toolkit.advising.advice import advise_on

    facts = {key: value for key, value in known.items() if key in advisor.given}
    stated = advisor.situation.read({key: value for key, value in known.items() if key not in advisor.given})
    situation = advisor.situation(**{**described.model_dump(), **stated.known()})
    return advise_on(advisor, situation, read_by=read_by, given=facts).as_json(tool)


async def _in_thread(back: Backend, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `work` gives, in a thread of advice. Cancelled before a thread is free, it never begins."""
    return await asyncio.wrap_future(back.advice.submit(work, *arguments, **options))
