"""The route of advice: a configuration for a project that advises, from a description.

It asks the project's promoted program where there is one, and keyword rules else; what is measured is read, and nothing is run.
Not covered: running what is advised (`dspy-toolkit advise --probe` and `--try`), a user's own runs.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.serving.edge import Route, as_json, backend, caller
from dspy_toolkit.serving.problems import Problem
from dspy_toolkit.serving.requests import check_lengths, parse, read_body, while_connected

router = APIRouter(route_class=Route)


class AdviceBody(BaseModel):
    """What somebody has and wants."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field("", description="In their own words.")
    known: dict[str, str] = Field(
        {}, description="Fields of the situation by name, which count before the description."
    )
    tool: str = Field("", description="In whose format the configuration is written; the project's first by default.")


BODY = TypeAdapter(AdviceBody)


@router.post("/v1/projects/{name}/advise", tags=["projects"], summary="Advise on a project")
async def give_advice(name: str, request: Request) -> Response:
    """A configuration for the real tool, what to expect of it, why, and what was not known. `name`: lora, diffusion, clip, federated."""
    from dspy_toolkit.advising.advice import advise
    from dspy_toolkit.advising.advisor import advisor_names, load_advisor

    back = backend(request)
    owner = caller(request, "predict")
    if name not in advisor_names():
        raise Problem(404, "no_such_project", f"No project of that name advises. Known: {', '.join(advisor_names())}.")
    said = parse(await read_body(request, back.settings.serving.max_body_bytes), BODY)
    check_lengths({"description": said.description, **said.known}, back.settings.serving.max_field_characters)

    def work() -> dict[str, object]:
        advice = advise(load_advisor(name), said.description, settings=back.settings, **said.known)
        return advice.as_json(said.tool)

    async def answer() -> dict[str, object]:
        async with back.admission.slot(owner):
            return await asyncio.to_thread(work)

    try:
        return as_json(await while_connected(request, answer()))
    except ProjectError as error:
        raise Problem(422, "bad_fields", str(error)) from error
