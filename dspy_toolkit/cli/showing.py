"""`dspy-toolkit programs show` and `diff`: what a program is, and what two differ in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from dspy_toolkit.registry import Manifest
    from dspy_toolkit.registry.differences import Difference
    from dspy_toolkit.registry.messages import SentPrompt
    from dspy_toolkit.settings import Settings

SHOWN = 600
"""Characters of one value of a demonstration, or of a grammar, that are shown."""


def show_program(
    program: str,
    /,
    *,
    inputs: Annotated[tuple[str, ...], Parameter(name=["--input", "-i"], negative="", show_default=False)] = (),
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Show a program: where it came from, how it scored, and the messages that the model gets, to the letter.

    Args:
        program: A project (its champion, else its own program), project@champion, project@3 or a folder.
        inputs: A value to show in the messages, as NAME=VALUE, read as `predict` reads it; an input that is not given stands as
            {{NAME}}.
        project: Where the program's project is, if it is neither installed nor where it was.
        json: Print the manifest, the state and the messages as JSON.
    """
    from rich.console import Group

    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, properties
    from dspy_toolkit.registry.programs import load_state, own_state
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    state, manifest = load_state(settings, program, project)
    if manifest is None:
        state = own_state(settings, program, project)
    sent, why_not = _messages(settings, program, project, _pairs(inputs))
    if json:
        about = manifest.model_dump(mode="json") if manifest else None
        messages = [each.model_dump(mode="json") for each in sent]
        print(json_text({"manifest": about, "program": state, "messages": messages}, indent=2))
        return
    parts: list[RenderableType] = []
    if manifest is None:
        parts.append(f"{program}: nothing is promoted; this is the project's own program.")
    else:
        parts.append(properties(_origin(manifest), title=program))
    # Of a program whose project is gone, what was saved is all there is to see.
    parts += [*_predictors(state), "", why_not] if why_not else _sent(sent, state)
    console().print(Group(*parts), crop=False)


def diff_programs(
    first: str,
    second: str,
    /,
    *,
    json: Json = False,
) -> None:
    """Put two programs side by side: scores, instructions, demonstrations, formats, weights and adapters.

    Args:
        first: A project (its champion, else its own program), project@champion, project@3 or a folder.
        second: The same.
        json: Print JSON, for scripts.
    """
    from rich.console import Group

    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.registry.differences import differences
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    found = differences(settings, first, second)
    if json:
        print(json_text(found.model_dump(mode="json"), indent=2))
        return
    console().print(Group(*_side_by_side(found)))


def _messages(
    settings: Settings, reference: str, location: str, inputs: dict[str, str]
) -> tuple[tuple[SentPrompt, ...], str]:
    """What the model gets; or why that cannot be said."""
    from dspy_toolkit.errors import ProjectError, RegistryError, nearest
    from dspy_toolkit.predicting import fit
    from dspy_toolkit.project.signatures import fields_of
    from dspy_toolkit.registry.messages import messages_of
    from dspy_toolkit.registry.programs import load_program

    try:
        loaded = load_program(settings, reference, location)
    except (ProjectError, RegistryError) as error:
        return (), f"The messages cannot be shown: {error}"
    types = fields_of(loaded.program)
    predictors: list[Any] = loaded.program.predictors()
    known = {name for predictor in predictors for name in predictor.signature.input_fields}
    if unknown := [name for name in inputs if name not in known]:
        raise ProjectError(f"{reference} has no input {unknown[0]!r}.{nearest(unknown[0], known)}")
    given = {name: fit(name, value, types[name]) for name, value in inputs.items()}
    return messages_of(loaded.program, settings.for_project(loaded.project.name), given), ""


def _pairs(inputs: tuple[str, ...]) -> dict[str, str]:
    from dspy_toolkit.errors import ProjectError

    given: dict[str, str] = {}
    for pair in inputs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ProjectError(f"--input {pair!r} has no =. Write --input NAME=VALUE.")
        if (name := name.strip()) in given:
            raise ProjectError(f"The input {name!r} is given twice. Give it once.")
        given[name] = value
    return given


def _sent(sent: tuple[SentPrompt, ...], state: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    from dspy_toolkit.cli.verbatim import Verbatim
    from dspy_toolkit.project.states import levers_in_words, predictor_states

    parts = predictor_states(state)
    for prompt in sent:
        part = parts.get(prompt.predictor, {})
        demos = part.get("demos") or []
        words = [f"{len(demos)} demonstrations" if len(demos) != 1 else "1 demonstration", *levers_in_words(part)]
        yield ""
        name = f"What {prompt.predictor} sends" if prompt.predictor else "What it sends"
        yield Text.assemble((name, "bold underline"), f": {', '.join(words)}")
        for message in prompt.messages:
            yield ""
            yield Text(str(message["role"]), style="bold")
            yield Verbatim(str(message["content"]))
        for option, value in prompt.options.items():
            yield ""
            yield Text(option, style="bold")
            yield Text(_shortened(value), style="dim")


def _side_by_side(found: Difference) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    first, second = found.references
    table = Table(box=None, show_header=True, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", first, second):
        table.add_column(Text(column, "bold"), overflow="fold", ratio=None if not column else 1)
    for name, (before, after) in found.facts.items():
        table.add_row(Text(name, "bold"), *(Text(_fact(value)) for value in (before, after)))
    for predictor in found.predictors:
        where = f" of {predictor.name}" if predictor.name else ""
        same = predictor.instructions[0] == predictor.instructions[1]
        table.add_row()
        sides = (predictor.instructions[0], "the same" if same else predictor.instructions[1])
        table.add_row(Text(f"instructions{where}", "bold"), *map(Text, sides))
        if predictor.levers[0] or predictor.levers[1]:
            table.add_row(Text(f"levers{where}", "bold"), *(Text("\n".join(side)) for side in predictor.levers))
        alone = (predictor.only_first, predictor.only_second)
        for number in range(max(map(len, alone))):
            shown = (json_text(side[number]) if number < len(side) else "" for side in alone)
            name = f"demonstrations{where}" if not number else ""
            table.add_row(Text(name, "bold"), *(Text(_shortened(text)) for text in shown))
        if predictor.both:
            table.add_row(
                Text("" if any(alone) else f"demonstrations{where}", "bold"), Text(f"{predictor.both} in both")
            )
    yield table
    yield ""
    yield "The model is sent the same." if found.same else "The model is sent different prompts."


def _fact(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _origin(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    from dspy_toolkit.display.tables import percent, points

    yield "project", f"{manifest.project} ({manifest.location})" if manifest.location else manifest.project
    yield "fields", ", ".join(f"{name}: {_kind(kind)}" for name, kind in manifest.signature_fields.items())
    yield "optimizer", " ".join([manifest.optimizer, *(f"{k}={v}" for k, v in manifest.optimizer_settings.items())])
    yield "model", manifest.model
    yield "metric", manifest.metric
    yield "trained on", f"{len(manifest.trained_rows):,} rows"
    yield "saved", manifest.created
    if manifest.imported:
        came = manifest.imported
        yield "imported from", came.project if came.version is None else f"{came.project}@{came.version}"
    if manifest.verdict:
        yield "verdict", f"{manifest.verdict.outcome}: {manifest.verdict.reason}"
    parent = f"version {manifest.parent}" if isinstance(manifest.parent, int) else manifest.parent
    yield "started from", parent or "the project's own program"
    if manifest.previous_champion:
        yield "champion then", f"version {manifest.previous_champion}"
    for name, report in manifest.reports.items():
        if not isinstance(report, dict):
            continue
        if "delta" in report:
            ends = f"[{100 * report.get('low', 0):+.1f}, {100 * report.get('high', 0):+.1f}]"
            yield name, f"{points(report['delta'])} {ends}"
        elif "mean" in report:
            ends = f"[{100 * report.get('low', 0):.1f}, {100 * report.get('high', 0):.1f}]"
            yield name, f"{percent(report['mean'])} {ends} on {report.get('n', '?')} rows"


def _predictors(state: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    from dspy_toolkit.cli.verbatim import Verbatim
    from dspy_toolkit.display.tables import properties
    from dspy_toolkit.project.states import levers_in_words, predictor_states

    for name, part in predictor_states(state).items():
        yield ""
        yield Text(f"Instructions of {name}" if name else "Instructions", style="bold underline")
        yield Verbatim(part["signature"]["instructions"])
        for lever in levers_in_words(part):
            yield ""
            yield Text(f"{lever[0].upper()}{lever[1:]}", style="bold underline")
        demos = part.get("demos") or []
        yield ""
        yield Text(f"Demos: {len(demos)}" if demos else "No demos", style="bold underline")
        for number, demo in enumerate(demos, start=1):
            yield Text(f"{number}, answered by a model" if demo.get("augmented") else str(number), style="dim")
            yield properties((name, _shortened(demo[name])) for name in _in_order(demo, part["signature"]))


def _kind(annotation: str) -> str:
    """`<class 'str'>` and `typing.Literal['a']` as a person would write them."""
    return re.sub(r"<class '([^']*)'>", r"\1", annotation).replace("typing.", "")


def _in_order(demo: dict[str, Any], signature: dict[str, Any]) -> list[str]:
    """The field names of a demo, inputs first. A saved state is sorted; its fields' prefixes (`User Name:`) are not."""
    prefixes = [_letters(field["prefix"]) for field in signature["fields"]]
    known = {name: _letters(name) for name in demo if name not in ("augmented", "dspy_uuid", "dspy_split")}
    return sorted(known, key=lambda name: prefixes.index(known[name]) if known[name] in prefixes else len(prefixes))


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json_text(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"
