"""GEPA with a reflector that knows the answer: what its search gains when a model can reflect.

The embedded model is too weak to reflect. Here it runs the task, while a `FakeEngine` reflects: whatever it is shown, it
writes one instruction that is known to help. What is measured is the search (that it tries the instruction, sees that it
helps, and keeps it), not anybody's skill in writing one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from benchmarks.optimizers.measuring import Say, measure_bench
from benchmarks.optimizers.rows import SCRIPTED, Kept, Row
from benchmarks.optimizers.tasks import find_task
from dspy_toolkit.lm.connection import Connection, connect
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection
from dspy_toolkit.workbench import Workbench

if TYPE_CHECKING:
    from dspy_toolkit.lm.exchange import GenerationRequest

TASK = "title"
INSTRUCTION = """Write a title in the house style: method on data: finding. For example: LoRA on song lyrics: overfits.
The finding is one of: overfits, too slow, works well, no gain, diverges, out of memory, needs more rows, ready to ship."""
REFLECTOR = "mlx/scripted-reflector"
"""A name that stays, so that a second run finds its replies in the cache."""
FIELD = re.compile(r"\[\[ ## (\w*instruction) ## \]\]")


def write_instruction(request: GenerationRequest) -> dict[str, Any]:
    """The reflector's reply: INSTRUCTION, in the field that is asked for (the last one that the format names)."""
    return {FIELD.findall(request.messages[0].content)[-1]: INSTRUCTION}


@dataclass(frozen=True)
class ScriptedBench(Workbench):
    """A workbench whose reflection model is scripted."""

    @cached_property
    def connection(self) -> Connection:
        """The task model of the settings, beside the fake."""
        real = connect(self.settings)
        fake = fake_connection(write_instruction, self.settings, model=REFLECTOR)
        return Connection(real.lm, real.adapter, fake.lm, fake.adapter)


def measure_scripted(settings: Settings, budget: str, kept: Kept, say: Say) -> Iterator[list[Row]]:
    """GEPA on TASK; its rows go by the name of SCRIPTED."""
    task = find_task(TASK)
    bench = ScriptedBench(task.project, settings, task.records(settings))
    yield from measure_bench(bench, budget, ("gepa",), kept, say, name=SCRIPTED)
