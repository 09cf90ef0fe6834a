"""Measures, for one model on this machine, by how much the engine had best do at once (`rules`).

**chunk**: the rate at which prompts are read in pieces of several sizes; the smallest within 5 % of the fastest, since a long
prompt delays the others by a piece. **width**: the tokens a second of steps of so many sequences; the smallest within 5 % of
the most, since more sequences make each of them slower. **fill**: what a second position adds to a step of that width, as a
share of the step.

Each number is the median of repeated passes of the model alone, which takes nearly all of the engine's time. Not covered:
prompts that share beginnings, grammars, several adapters.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dspy_toolkit.lm.engine.rules import DEFAULT, Rules
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import MemoryPlan
from dspy_toolkit.lm.models.weights import Weights, load_model
from dspy_toolkit.settings import LMSettings
from dspy_toolkit.store import Frozen

CHUNKS = (128, 256, 512, 1024, 2048, 4096)
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
BEFORE = 64
"""Tokens that the sequences of a step have seen."""
NEAR = 0.95
"""Of the best rate: as good."""
LEAST_PASSES = 3


class Tuned(Frozen):
    """What was measured, and what follows."""

    rules: Rules
    reading: Mapping[int, float]
    """Prompt tokens a second, by the size of a piece."""
    steps: Mapping[int, float]
    """Reply tokens a second, by sequences in a step."""


def tune(weights: Weights, plan: MemoryPlan, hardware: Hardware, seconds: float = 60.0) -> Tuned:
    """Measure. Takes the accelerator for itself, which the caller must have the lease of.

    Args:
        weights: the model, loaded for this alone.
        plan: how much memory the sequences may take, and how long they may be.
        seconds: to measure for, about, beside loading; longer where the usual sizes take longer.

    Raises:
        ModelError: mlx_lm cannot load the model.
    """
    # Of its own: MLX's streams must not outlive their thread.
    with ThreadPoolExecutor(1, thread_name_prefix="tune") as thread:
        return thread.submit(_tune, weights, plan, hardware, seconds).result()


def rules_from(
    reading: Mapping[int, float], steps: Mapping[int, float], more: Callable[[int], float], device: str
) -> Rules:
    """What follows from rates.

    Args:
        reading: tokens a second by the size of a piece; may be empty.
        steps: tokens a second by sequences in a step; may be empty.
        more: seconds of a step with two positions a sequence, of so many sequences.
        device: whose defaults stand where nothing was measured.
    """
    rules = DEFAULT[device]
    if reading:
        rules = rules.model_copy(update={"chunk": _smallest(reading)})
    if steps:
        width = _smallest(steps)
        fill = more(width) * steps[width] / width - 1
        # Below a tenth nearly any sequence would make all others a position wider, for noise.
        rules = rules.model_copy(update={"width": width, "fill": round(min(max(fill, 0.1), 1.0), 2)})
    return rules


def _smallest(rates: Mapping[int, float]) -> int:
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= NEAR * best)


def _tune(weights: Weights, plan: MemoryPlan, hardware: Hardware, seconds: float) -> Tuned:
    import mlx.core as mx

    try:
        model, _ = load_model(weights, hardware.device)
        chunks = [size for size in CHUNKS if size <= plan.context_size]
        room = plan.kv_budget_bytes / max(plan.token_bytes * (BEFORE + 2), 1)
        widths = [width for width in WIDTHS if width <= max(room, 1)]
        each = seconds / (2 * (len(chunks) + len(widths) + 1))
        now = time.perf_counter()
        usual = DEFAULT[hardware.device].chunk
        reading = _while_it_grows(
            chunks, lambda size: size / _seconds(_reads(model, size), each), now + 0.4 * seconds, usual
        )
        usual = LMSettings().batch_size
        rates = _while_it_grows(widths, lambda width: width / _step(model, width, 1, each), now + 0.9 * seconds, usual)
        rules = rules_from(reading, rates, lambda width: _step(model, width, 2, each), hardware.device)
        return Tuned(rules=rules, reading=reading, steps=rates)
    finally:
        mx.clear_streams()
        mx.clear_cache()


def _while_it_grows(
    sizes: Sequence[int], rate_of: Callable[[int], float], until: float, usual: int
) -> dict[int, float]:
    """Rates by size, until two in a row gain nothing: still larger ones take long, and are no better.

    Args:
        until: when the time is over, which ends it from the `usual` size on: a busy machine must not make a small one the best.
    """
    rates: dict[int, float] = {}
    idle = 0
    for size in sizes:
        best = max(rates.values(), default=0.0)
        rates[size] = rate_of(size)
        idle = idle + 1 if rates[size] * NEAR < best else 0
        if idle == 2 or (size >= usual and time.perf_counter() > until):
            break
    return rates


def _reads(model: Any, size: int) -> Callable[[], None]:
    """Reads a piece of a prompt; no logits are computed, as in the engine."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    tokens = mx.array([[token % 97 + 1 for token in range(size)]])

    def read() -> None:
        caches = make_prompt_cache(model)
        model(tokens, cache=caches)
        mx.eval([cache.state for cache in caches])

    return read


def _step(model: Any, width: int, positions: int, seconds: float) -> float:
    """Seconds of a step of so many sequences and positions each."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

    caches = make_prompt_cache(model)
    model(mx.full((width, BEFORE), 1), cache=caches)
    mx.eval([cache.state for cache in caches])
    tokens = mx.full((width, positions), 2)

    def step() -> None:
        mx.eval(model(tokens, cache=caches)[:, -1])
        trim_prompt_cache(caches, positions)  # the next one is as long; windows and states cannot, and need not

    return _seconds(step, seconds)


def _seconds(work: Callable[[], object], limit: float) -> float:
    """The median of repeated passes. The first makes buffers and kernels, and counts only where it took all the time."""
    until = time.perf_counter() + limit
    first = _timed(work)
    taken: list[float] = []
    while time.perf_counter() < until or (first < limit and len(taken) < LEAST_PASSES):
        taken.append(_timed(work))
    return statistics.median(taken or [first])


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
