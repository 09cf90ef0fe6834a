"""GEPA between two scripted models: what its search gains where one model can reflect and the other does as it is told.

The embedded model can do neither. It writes no usable instruction, and follows hardly any: of eleven tried by hand on four
of the tasks, on a few dozen validation rows each, none scored a point above the signature's own line, and most below it. So
both models are `FakeEngine`s here. The reflector, whatever it is shown, writes one good instruction. The task model writes
the house style when its prompt spells it out, and then gets four titles of five right; else its title is the beginning of
the note.

What is measured is the search: that GEPA hands the metric's feedback to the reflector, tries what comes back, sees that it
helps, and keeps it. Nothing is said about anybody's skill in writing instructions, or in following them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.optimizers.measuring import Batch, Say, measure_context
from benchmarks.optimizers.rows import SCRIPTED, Kept
from benchmarks.optimizers.tasks import Record, find_task
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import digest
from dspy_toolkit.testing import fake_connection

if TYPE_CHECKING:
    from dspy_toolkit.lm.protocol import GenerationRequest

TASK = "title"
SCRIPTED_SYSTEMS = ("gepa",)
STYLE = "house style: method on data: finding"
INSTRUCTION = f"""Write a title in the {STYLE}. For example: LoRA on song lyrics: overfits.
The finding is one of: overfits, too slow, works well, no gain, diverges, out of memory, needs more rows, ready to ship."""
MODEL, REFLECTOR = "mlx/scripted-task", "mlx/scripted-reflector"
"""Names that stay, so that a second run finds its replies in the cache."""
FIELD = re.compile(r"\[\[ ## (\w*instruction) ## \]\]")
NOTE = re.compile(r"\[\[ ## note ## \]\]\n(.*)")
WRONG = 5
"""One title in this many is wrong also of a model that was told."""
OPENING = 6
"""Words of a note that stand for a title where nobody said what a title is."""


def write_instruction(request: GenerationRequest) -> dict[str, Any]:
    """The reflector's reply: INSTRUCTION, in the field that is asked for (the last one that the format names)."""
    return {FIELD.findall(request.messages[0].content)[-1]: INSTRUCTION}


def title_writer(records: Sequence[Record]) -> Callable[[GenerationRequest], dict[str, Any]]:
    """The task model's replies; it knows the titles of `records`."""
    titles = {record["note"]: record["title"] for record in records}

    def write(request: GenerationRequest) -> dict[str, Any]:
        note = NOTE.findall(request.messages[-1].content)[-1]
        able = STYLE in request.messages[0].content and int(digest(note), 16) % WRONG
        return {"title": titles[note] if able else " ".join(note.split()[:OPENING])[:60]}

    return write


def scripted_context(settings: Settings) -> Context:
    """TASK with scripted models; their names, and so what is kept under them, say what they are told to do."""
    task = find_task(TASK)
    records = task.records(settings)
    home = settings.path()
    names = {
        "lm": f"openai/scripted-task-{WRONG}-{OPENING}",
        "reflection": f"openai/scripted-reflector-{digest(INSTRUCTION)[:8]}",
    }
    named = {role: getattr(settings, role).model_copy(update={"model": name}) for role, name in names.items()}
    settings = settings.model_copy(update=named)

    def connect(settings: Settings) -> Connection:
        task_model = fake_connection(title_writer(records), home, model=MODEL)
        reflector = fake_connection(write_instruction, home, model=REFLECTOR)
        return Connection(task_model.lm, task_model.adapter, {"reflection": lambda: reflector.reflection})

    return Context(task.project, settings, connect, records)


def measure_scripted(settings: Settings, budget: str, kept: Kept, say: Say) -> Iterator[Batch]:
    """GEPA on TASK; its rows go by the name of SCRIPTED."""
    yield from measure_context(scripted_context(settings), budget, SCRIPTED_SYSTEMS, kept, say, name=SCRIPTED)
