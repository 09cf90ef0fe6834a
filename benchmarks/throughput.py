"""How fast this machine and its engine are: the hardware's rates, and bursts of requests through `dspy.LM`.

The requests are made up here, always the same but for a few characters that keep one run's prefix from being another's,
so that figures of different days, data and versions can be compared. `burst` and `measure_rates` are what `benchmarks`
measures with as well.

Not covered: accuracy, other systems (`benchmarks.lm`); keeping figures and judging them
(`dspy_toolkit.tracking.machine`).
"""

from __future__ import annotations

import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from dspy_toolkit.errors import ModelError
from dspy_toolkit.lm.protocol import EngineStats
from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.machine import Figure

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.lm.connection import Connection

Item = TypeVar("Item")
Answer = TypeVar("Answer")

THREADS = 16
"""Callers at once, as DSPy's optimizers have."""
REQUESTS = 48
"""Of one burst of classifications; of free text a third."""
ANSWER = 200
"""Characters of free text, so that every reply ends by itself and is about as long as any other."""
MAX_TOKENS = 192
"""More than any reply needs."""
CPU_SIDE, GPU_SIDE = 1536, 4096
"""Of the square matrices whose product is timed: 7 and 137 billion operations."""
COPIED = 192 * 2**20
"""Bytes that one thread copies when memory is timed: far more than any cache holds."""
REPEATS = 5


class Rates(Frozen):
    """The hardware's best rates."""

    flops: float
    """Float32 operations a second in a square matrix product, through MLX; a multiplication and an addition are two."""
    bytes: float
    """Bytes a second, read and written, while copying."""


@dataclass(frozen=True)
class Burst(Generic[Answer]):
    """Calls made by several threads at once."""

    results: list[Answer]
    """In the order of the items."""
    seconds: float
    """From the first call to the last answer."""
    latencies: list[float]
    """Seconds of each call, in the order of the items."""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.results) / self.seconds


def burst(call: Callable[[Item], Answer], items: Sequence[Item], threads: int = THREADS) -> Burst[Answer]:
    """Call `call` on every item from `threads` threads. What a call raises ends the burst."""

    def timed(item: Item) -> tuple[Answer, float]:
        began = time.perf_counter()
        return call(item), time.perf_counter() - began

    with ThreadPoolExecutor(threads, thread_name_prefix="burst") as pool:
        began = time.perf_counter()
        futures = [pool.submit(timed, item) for item in items]
        try:
            done = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        seconds = time.perf_counter() - began
    return Burst([result for result, _ in done], seconds, [latency for _, latency in done])


def measure_rates() -> Rates:
    """Time a matrix product and a copy, each the best of a few: other work on the machine only ever slows one down."""
    from dspy_toolkit.lm.models.hardware import inspect_hardware

    hardware = inspect_hardware()
    found: list[Rates] = []

    def measure() -> None:
        import mlx.core as mx

        try:
            cpu = hardware.device == "cpu"
            found.append(Rates(flops=_product(CPU_SIDE if cpu else GPU_SIDE), bytes=_copies(hardware.cores, cpu=cpu)))
        finally:
            mx.clear_streams()

    # MLX's streams must not outlive the thread that made them.
    thread = threading.Thread(target=measure, name="measure rates")
    thread.start()
    thread.join()
    return found[0]


def _product(side: int) -> float:
    import mlx.core as mx

    a, b = (mx.random.normal((side, side)) for _ in range(2))
    mx.eval(a, b, a @ b)
    return 2 * side**3 / _best(lambda: mx.eval(a @ b))


def _copies(cores: int, *, cpu: bool) -> float:
    if not cpu:
        import mlx.core as mx

        ones = mx.ones(COPIED)  # float32: four times as many bytes
        mx.eval(ones, ones + 1)
        return 2 * ones.nbytes / _best(lambda: mx.eval(ones + 1))
    import numpy as np

    # One thread cannot fill the memory bus; NumPy copies without the interpreter's lock.
    pairs = [(np.ones(COPIED // 8), np.ones(COPIED // 8)) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        seconds = _best(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))
    return 2 * COPIED * cores / seconds


def _best(act: Callable[[], Any]) -> float:
    """The least seconds of REPEATS runs."""
    seconds = math.inf
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        seconds = min(seconds, time.perf_counter() - began)
    return seconds


def measure_engine(
    connection: Connection,
    *,
    requests: int = REQUESTS,
    threads: int = THREADS,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Figure]:
    """The engine behind `connection` through `dspy.LM`, with no cache of replies.

    Args:
        connection: to an MLX model; loaded first, which is not timed.
        requests: of each burst of classifications; a third as many of free text.
        threads: callers at once.
        progress: told (bursts done, bursts in all, what is going on).

    Returns:
        `cold_prefix` and `warm_prefix` (requests/s, classifications whose instructions nobody, and everybody, has
        seen), `free_text` (tokens/s of replies), and, where the engine counts them, `model_share` (of the warm burst's
        wall time) and `step_overhead` (ms a decoding step, beside the model, in the warm burst).

    Raises:
        ModelError: the model is not one that an engine of this process runs.
        ToolkitError: a request failed.
    """
    from dspy_toolkit.lm.litellm.provider import find_engine
    from dspy_toolkit.lm.models.weights import PREFIX

    if not connection.model.startswith(PREFIX):
        raise ModelError(
            f"{connection.model} is not run by an engine of this machine, so there is nothing to measure. "
            f"Set lm.model to an MLX model, such as {PREFIX}smollm2-135m."
        )
    engine = find_engine(connection.model)
    lm = connection.lm.metered().copy(cache=False, temperature=0.0, max_tokens=MAX_TOKENS)
    texts = made_up_texts(2 * requests + threads)

    def tell(done: int, doing: str) -> None:
        if progress is not None:
            progress(done, 3, doing)

    def run(program: dspy.Module, items: list[str]) -> tuple[Burst[Any], EngineStats, EngineStats]:
        before = engine.stats()
        done = burst(lambda text: _call(program, lm, connection, text), items, threads)
        return done, before, engine.stats()

    tell(0, "loading the model")
    classify = _program(SORTING, uuid.uuid4().hex[:8])
    _call(_program(SORTING, uuid.uuid4().hex[:8]), lm, connection, texts[-1])
    tell(0, "classification, cold prefix")
    cold, _, _ = run(classify, texts[:requests])
    tell(1, "classification, warm prefix")
    warm, before, after = run(classify, texts[requests : 2 * requests])
    tell(2, "free text")
    free, start, end = run(_program(EXPLAINING, uuid.uuid4().hex[:8]), texts[: max(requests // 3, threads)])
    tokens = end.decoded_tokens + end.forced_tokens - start.decoded_tokens - start.forced_tokens
    tell(3, "")
    return [
        Figure(name="cold_prefix", value=cold.rate, unit="requests/s"),
        Figure(name="warm_prefix", value=warm.rate, unit="requests/s"),
        Figure(name="free_text", value=tokens / free.seconds, unit="tokens/s"),
        *step_figures(before, after, warm.seconds),
    ]


def step_figures(before: EngineStats, after: EngineStats, seconds: float) -> list[Figure]:
    """The model's share of `seconds` of wall time, and the engine's own time a step, between two readings of its
    counters.

    Nothing where the engine does not count them.
    """
    model = after.model_seconds - before.model_seconds
    read = after.prefill_model_seconds - before.prefill_model_seconds
    steps = after.steps - before.steps
    if model <= 0 or steps <= 0:
        return []
    own = after.step_seconds - before.step_seconds - model
    return [
        Figure(name="model_share", value=100 * (model + read) / seconds, unit="%"),
        Figure(name="step_overhead", value=1000 * max(own, 0.0) / steps, unit="ms", better="lower"),
    ]


def _call(program: dspy.Module, lm: Any, connection: Connection, text: str) -> Any:
    import dspy

    with dspy.context(lm=lm, adapter=connection.adapter):
        return program(text=text)


SORTING = """Say which drawer of the workshop a note belongs to, by what the note asks for.

- timber: boards, beams, joints, veneers, glue, everything that is sawn, planed, steamed or sanded
- metal: sheets, rods, screws, springs, hinges, everything that is forged, cast, filed, welded or turned
- cloth: yarns, ribbons, felts, sails, everything that is woven, knitted, sewn, dyed or mended
- glass: panes, lenses, bottles, beads, everything that is blown, ground, cut, etched or polished
- paper: sheets, cards, maps, bindings, everything that is folded, printed, stamped or sealed
- clay: bricks, tiles, pots, pipes, everything that is thrown, dried, glazed or fired

A note may name more than one material. Then the tool decides, and where no tool is named, the order in which the
materials
are mentioned. A note that asks for a repair goes to the drawer of the broken part, not to that of the glue or
thread."""
EXPLAINING = "Write two sentences about what the note asks for, and what would be needed for it."


def _program(instructions: str, salt: str) -> Any:
    """A program whose prompt begins like no other's: `salt` stands near its start."""
    import dspy

    label = Literal["timber", "metal", "cloth", "glass", "paper", "clay"]
    answer = (label, dspy.OutputField()) if instructions is SORTING else (str, dspy.OutputField(max_length=ANSWER))
    name = "drawer" if instructions is SORTING else "answer"
    fields: Any = {"text": (str, dspy.InputField(desc=f"a note, as it was found (box {salt})")), name: answer}
    return dspy.Predict(dspy.make_signature(fields, instructions))


WORDS = {
    "who": ["apprentice", "neighbour", "captain", "gardener", "baker", "clerk", "painter", "shepherd"],
    "does": [
        "asks for",
        "would like",
        "has lost",
        "ordered",
        "cannot find",
        "wants to mend",
        "left behind",
        "is looking for",
    ],
    "what": [
        "hinge",
        "board",
        "lens",
        "ribbon",
        "map",
        "tile",
        "bottle",
        "spring",
        "veneer",
        "sail",
        "binding",
        "brick",
        "pane",
        "rod",
        "felt",
        "card",
    ],
    "how": [
        "carefully",
        "before winter",
        "by the old rule",
        "without a lamp",
        "for the second time",
        "as last year",
        "in one piece",
    ],
}


def made_up_texts(count: int, seed: int = 0) -> list[str]:
    """`count` different notes of some 20 words each, the same ones every time."""
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        first, second = draw.sample(WORDS["what"], 2)
        texts[
            f"The {draw.choice(WORDS['who'])} {draw.choice(WORDS['does'])} a {first} {draw.choice(WORDS['how'])}, and the "
            f"{draw.choice(WORDS['who'])} {draw.choice(WORDS['does'])} {draw.randint(2, 99)} of the {second} kind."
        ] = None
    return list(texts)
