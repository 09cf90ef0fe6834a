"""A task whose model is a function: it answers rightly only when its prompt has what an optimizer should put there."""

from __future__ import annotations

import gc
import hashlib
import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pandas as pd

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.datasets.table import row_hash, table_of
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.optimizers import Budget, Choice, Compiled, Problem, Profile, compile_program
from dspy_toolkit.optimizers.generators.workshop import Progress
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.store import Store
from dspy_toolkit.testing import FakeEngine, fake_connection, fake_engine

LABELS = ("red", "green", "blue")
SPEC = DatasetSpec(source="toy", inputs=("text",), outputs=("label",))
HINT = "Say the colour of the thing: label red, green or blue."
THINGS = {"red": ("tomato", "cherry"), "green": ("lime", "frog"), "blue": ("whale", "sky")}

CONNECTIONS = itertools.count(1)
WRITTEN = ("better_instruction", "proposed_instruction", "new_instruction")
NOTES = ("summary", "observations", "module_description", "program_description", "discussion")


class Colour(dspy.Signature):
    """Classify."""

    text: str = dspy.InputField()
    label: Literal["red", "green", "blue"] = dspy.OutputField()


def program() -> dspy.Module:
    return dspy.Predict(Colour)


def right_answer(text: str) -> str:
    return next(label for label, things in THINGS.items() if any(thing in text for thing in things))


def rows(count: int, start: int = 0) -> pd.DataFrame:
    """A split as `prepare` stores it."""
    texts = []
    for number in range(start, start + count):
        label = LABELS[number % 3]
        texts.append((f"the {THINGS[label][number % 2]} number {number}", label))
    keys = [row_hash({"text": text, "label": label}) for text, label in texts]
    columns = {
        "text": [text for text, _ in texts],
        "label": [label for _, label in texts],
        "_row": keys,
        "_group": keys,
    }
    return table_of(columns)


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows as a user has them, no two of them alike."""
    made = []
    for number in range(start, start + count):
        label = LABELS[number % 3]
        words = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        made.append({"text": f"{words} {THINGS[label][number % 2]} {number}", "label": label})
    return made


def question(request: GenerationRequest) -> str:
    """The text that is asked about."""
    return field_in("text", request.messages[-1].content)


def field_in(name: str, content: str) -> str:
    """The value of a field in a turn of the conversation, in any format."""
    marked = rf"\[\[ ## {name} ## \]\]\n(.*)|<{name}>\n(.*)|\"{name}\": ?\"([^\"]*)\""
    found = re.findall(marked, content)
    return "".join(found[-1]) if found else content  # alone, in the plain format


def demos_in(request: GenerationRequest) -> list[tuple[str, str]]:
    """(text, label) of each demonstration in a prompt."""
    found = []
    for asked, answered in zip(request.messages[1:-1:2], request.messages[2:-1:2], strict=True):
        found.append((field_in("text", asked.content), field_in("label", answered.content)))
    return found


def asked_field(request: GenerationRequest) -> str:
    """The output field of a request to the reflection model; empty for one of the task."""
    whole = " ".join(message.content for message in request.messages)
    return next((name for name in (*WRITTEN, *NOTES) if f"[[ ## {name} ## ]]" in whole.split("In adhering")[0]), "")


class Toy:
    """The task, its rows, and what its fake model is told to do."""

    def __init__(self, home: Path | Settings) -> None:
        settings = home if isinstance(home, Settings) else Settings(home=home / "home")
        # The name stands in fingerprints; no such model is ever asked, nor looked for.
        self.settings = settings.model_copy(update={"lm": LMSettings(model="openai/toy")})
        self.store = Store(self.settings.objects)
        self.train, self.val = rows(30), rows(24, start=100)
        self.knows: Callable[[GenerationRequest], bool] = lambda request: False
        """Whether this prompt makes the model answer rightly."""
        self.instruction: str | Exception = HINT
        """What the reflection model writes."""
        self.before: Callable[[int], Any] = lambda number: None
        """Called with the number of each request, before it is answered."""
        self.kinds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reply(self, request: GenerationRequest) -> Any:
        field = asked_field(request)
        with self._lock:
            self.kinds[field or "task"] += 1
            number = self.kinds.total()
        if (told := self.before(number)) is not None:
            return told
        if field in WRITTEN:
            return self.instruction if isinstance(self.instruction, Exception) else {field: self.instruction}
        if field:
            return {field: "Things of three colours."}
        text = question(request)
        right = right_answer(text)
        # Wrong always in the same way, but for one in six, which a bootstrap can build on.
        lucky = int(re.findall(r"\d+", text)[-1]) % 6 == 0
        return {"label": right if lucky or self.knows(request) else LABELS[LABELS.index(right) - 1]}

    def connect(self, **options: Any) -> Connection:
        """A fake of its own; `model=` names one that shares the cache with another of that name."""
        # Each home's cache holds some hundred files open, in cycles that Python may not look at for a long time.
        dspy.cache.disk_cache.close()
        if next(CONNECTIONS) % 20 == 0:
            gc.collect()
        return fake_connection(self.reply, self.settings, **options)

    def problem(self, connection: Connection | None = None, **changes: Any) -> Problem:
        given = {"program": program(), "train": self.train, "val": self.val, "spec": SPEC, "metric": exact_match}
        given |= {"store": self.store, "threads": 8, **changes}
        return Problem(connection=connection or self.connect(), **given)

    def compile(
        self,
        choice: Choice,
        connection: Connection | None = None,
        profile: Profile | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> Compiled:
        """Compile the problem with `changes`; `profile` is what the choice was made from."""
        seen = profile or seen_of(choice)
        return compile_program(self.problem(connection, **changes), choice, profile=seen, progress=progress)

    def state(self, compiled: Compiled) -> dict[str, Any]:
        return self.store.read_json(compiled.program)


def by_demos(request: GenerationRequest) -> bool:
    """A model that learns from four demonstrations."""
    return len(demos_in(request)) >= 4


def by_one_demo(request: GenerationRequest) -> bool:
    """A model that learns from one demonstration."""
    return bool(demos_in(request))


def by_instruction(request: GenerationRequest) -> bool:
    """A model that has to be told."""
    return "colour of the thing" in request.messages[0].content


TOML = """\
name = "colours"
summary = "Say the colour of a thing"
signature = 'text: str -> label: Literal["red", "green", "blue"]'
instructions = "Classify."
[dataset]
source = "colours.csv"
inputs = ["text"]
outputs = ["label"]
"""


def write_project(folder: Path, made: list[dict[str, Any]], toml: str = TOML) -> Path:
    """The toy as a user's project: a TOML file beside a CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(made, columns=["text", "label"]).to_csv(folder / "colours.csv", index=False)
    path = folder / "colours.toml"
    path.write_text(toml)
    return path


def profile(**changes: Any) -> Profile:
    """What a probe of the toy shows."""
    values: dict[str, Any] = {
        "train": 30,
        "val": 24,
        "probed": 24,
        "baseline": 0.2,
        "pass_rate": 0.2,
        "parse_failures": 0,
        "metric_errors": 0,
        "graded": False,
        "feedback": True,
        "predictors": 1,
        "labelled": True,
        "calls_per_run": 1.0,
        "prompt_tokens": 100.0,
        "completion_tokens": 5.0,
        "seconds_per_call": 0.1,
        "reflector_ok": True,
        "reflector_note": "it wrote 'Say the colour.'",
    }
    return Profile(**values | changes)


def choice(optimizer: str, lm_calls: int, **changes: Any) -> Choice:
    """What `select` makes of the toy with a budget of `lm_calls`."""
    from dspy_toolkit.optimizers import select

    seen = profile(**changes)
    made = select(seen, optimizer, Budget(name="tiny", lm_calls=lm_calls))
    SEEN[made.model_dump_json()] = seen
    return made


SEEN: dict[str, Profile] = {}
"""Choice → the profile that it was made from."""


def seen_of(choice: Choice) -> Profile:
    return SEEN.get(choice.model_dump_json(), profile())


def searched(compiled: Compiled) -> dict[str, Any]:
    """What of a compilation is the same each time on the same model: all but what the clock, and a cache, have a part in."""
    values = compiled.model_dump(include={"program", "changed", "val_mean", "trials", "generators", "winner", "best"})
    values["lm_calls"] = compiled.usage.lm_calls
    for trial in values["trials"]:
        del trial["seconds"]
    return values


def engine_of(connection: Connection) -> FakeEngine:
    return fake_engine(connection)
