"""A memory plan in words: what each part gets, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dspy_toolkit.lm.models.memory import HELD, SHORT_SEQUENCE, MemoryPlan, size
from dspy_toolkit.settings import LMSettings


class MemoryLine(NamedTuple):
    """One part of a plan."""

    name: str
    value: str
    why: str


def memory_lines(plan: MemoryPlan, settings: LMSettings, width_from: str = "lm.batch_size") -> Iterator[MemoryLine]:
    """Each part of `plan`, which was made with `settings`, whose batch width is `width_from` there."""
    yield MemoryLine("for the engine", size(plan.have_bytes), plan.origin)
    step = f"on {plan.device}; {size(plan.step_bytes)} more for a step's activations"
    yield MemoryLine("weights", size(plan.model_bytes), step)
    held = f"{size(plan.token_bytes)} a token; up to {HELD} times as much for a moment, while sequences join"
    yield MemoryLine("KV cache", size(plan.kv_budget_bytes), held)
    shared = "beginnings that prompts share, the least recently used going first"
    yield MemoryLine("prefixes", size(plan.prefix_budget_bytes), shared)
    yield MemoryLine("freed buffers", size(plan.cache_limit_bytes), "what MLX may keep for reuse")
    asked = plan.batch_width == settings.batch_size
    width = width_from if asked else f"as many of {SHORT_SEQUENCE} tokens as the KV cache holds"
    yield MemoryLine("batch width", f"{plan.batch_width} sequence{'s' * (plan.batch_width != 1)}", width)
    whole = plan.context_size == plan.model_context
    context = "the model's" if whole else f"as many as the KV cache holds, of the model's {plan.model_context}"
    yield MemoryLine("context", f"{plan.context_size} tokens", context)
    bits = "unquantized" if plan.kv_bits is None else f"{plan.kv_bits} bits a number"
    running = "running sequences are never quantized, since mlx_lm cannot batch quantized caches"
    yield MemoryLine(
        "kept prefixes", bits, f"lm.kv_bits {'is not set' if plan.kv_bits is None else 'says so'}; {running}"
    )
    if plan.wired_limit_bytes is None:
        yield MemoryLine("wired limit", "none", "only Metal wires memory")
    else:
        yield MemoryLine("wired limit", size(plan.wired_limit_bytes), "what the engine takes at most stays resident")
