"""What a scored choice costs beside a decoded one, on the embedded model.

    python -m benchmarks.lm.labels --json PATH

The same prompts, which share a long beginning, are asked for one of several labels in two ways that take turns: decoded
under the grammar of the reply, as predictions are, and scored, all labels at once. Each turn has questions of its own;
its beginning is kept from the turns before (`kept`) or new to the engine (`new`). The ratio is that of the shortest
times, scored over decoded; medians are shown beside.

Not covered: how good the labels are; other models; LiteLLM and DSPy, whose part is the same both ways.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import dspy

from benchmarks.machine import write
from dspy_toolkit.lm.grammar import signature_grammar
from dspy_toolkit.lm.protocol import GenerationRequest, TextEngine, make_request
from dspy_toolkit.settings import load_settings

SHORT = ("abbreviation", "entity", "description", "human", "location", "number")
LONG = (
    "billing",
    "billing dispute",
    "technical support for a customer",
    "technical sales",
    "return of damaged goods",
    "something else entirely",
)
PREFIX, SUFFIX = "[[ ## label ## ]]\n", "\n\n[[ ## completed ## ]]"
TOPICS = [
    "harbour",
    "museum",
    "river",
    "engine",
    "poet",
    "treaty",
    "violin",
    "glacier",
    "senate",
    "comet",
    "orchard",
    "lantern",
]


class Case(NamedTuple):
    """One row of the table."""

    labels: str
    requests: int
    beginning: Literal["kept", "new"]


class Times(NamedTuple):
    """Seconds of each turn."""

    decoded: list[float]
    scored: list[float]
    positions: list[float]
    """Of each scored turn, for one request: input positions of the passes that scored labels, padding included."""

    @property
    def ratio(self) -> float:
        """Of the shortest times: below 1, scoring is faster."""
        return min(self.scored) / min(self.decoded)


CASES = [
    Case(labels, requests, beginning)
    for labels in ("short", "long")
    for requests in (16, 1)
    for beginning in ("kept", "new")
]


def prompts(salt: str, number: int) -> list[list[dict[str, str]]]:
    """Prompts of some 420 tokens that share all but their last 25 or so with those of the same salt."""
    rules = " ".join(f"Rule {n}: a question about the {topic} goes to desk {n}." for n, topic in enumerate(TOPICS * 2))
    system = {"role": "system", "content": f"Case {salt}. Classify the question.\n{rules}"}
    return [
        [
            system,
            {
                "role": "user",
                "content": f"Question {uuid.uuid4().hex[:4]}: who was first to see the {TOPICS[n % 12]}?",
            },
        ]
        for n in range(number)
    ]


def measure(engine: TextEngine, case: Case, repeats: int) -> Times:
    """Both ways in turn, `repeats` times each after one turn that does not count."""
    labels = SHORT if case.labels == "short" else LONG
    output: Any = Literal[labels]  # type: ignore[valid-type]
    grammar = signature_grammar(
        dspy.Signature({"question": (str, dspy.InputField()), "label": (output, dspy.OutputField())})
    )
    decode: dict[str, Any] = {"grammar": grammar, "max_tokens": 64}
    score: dict[str, Any] = {"label_scores": {"prefix": PREFIX, "labels": labels, "suffix": SUFFIX}}
    times, kept = Times([], [], []), uuid.uuid4().hex[:6]
    for turn in range(repeats + 1):
        for fields, seconds in ((decode, times.decoded), (score, times.scored)):
            salt = kept if case.beginning == "kept" else uuid.uuid4().hex[:6]
            asked = [make_request(messages=messages, **fields) for messages in prompts(salt, case.requests)]
            before = engine.stats().scored_tokens
            took = timed(engine, asked)
            if turn:
                seconds.append(took)
            if turn and fields is score:
                times.positions.append((engine.stats().scored_tokens - before) / case.requests)
    return times


def timed(engine: TextEngine, requests: Sequence[GenerationRequest]) -> float:
    """Seconds from the first request to the last reply, all submitted at once."""
    began = time.perf_counter()
    pending = [engine.submit(request) for request in requests]
    for each in pending:
        each.result()
    return time.perf_counter() - began


def table(found: dict[Case, Times]) -> str:
    """The rows as text, seconds."""
    lines = [
        f"{'labels':8}{'requests':>9}  {'beginning':10}{'decoded s':>18}{'scored s':>18}{'ratio':>8}{'positions':>11}"
    ]
    show: Callable[[list[float]], str] = lambda seconds: f"{min(seconds):.3f} ({statistics.median(seconds):.3f})"  # noqa: E731
    lines += [
        f"{case.labels:8}{case.requests:9}  {case.beginning:10}{show(times.decoded):>18}{show(times.scored):>18}{times.ratio:8.2f}"
        f"{statistics.median(times.positions):11.1f}"
        for case, times in found.items()
    ]
    return "\n".join(
        [*lines, "Shortest (median) of all turns; ratio of the shortest; positions of the scoring of one request."]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case and print the table."""
    from dspy_toolkit.lm.engine.engine import Engine
    from dspy_toolkit.lm.models.weights import find_weights

    parser = argparse.ArgumentParser(prog="python -m benchmarks.lm.labels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns that count, of each way (default 5)")
    parser.add_argument("--only", default="", help="part of a case's name: short, long, kept, new, 16, 1")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args(arguments)
    settings = load_settings()
    engine = Engine(find_weights("mlx/smollm2-135m", settings.path()), settings.lm)
    wanted = set(given.only.split())
    found: dict[Case, Times] = {}
    try:
        for case in CASES:
            if wanted <= {str(part) for part in case}:
                found[case] = measure(engine, case, given.repeats)
    finally:
        engine.close()
    print(table(found))
    write(given.json, "labels", {" ".join(map(str, case)): times._asdict() for case, times in found.items()})


if __name__ == "__main__":
    main()
