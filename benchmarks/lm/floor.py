"""The least time that this machine could take for a workload, and how it is reckoned.

Operations over the measured rate of a matrix product, bytes over the measured rate of memory, whichever is longer, in
two phases. Prefill: every token of the prompts once, whatever they share once for all of them, the weights once a batch
of WIDTH rows (and once for the shared beginning). Decoding: only the tokens that the grammar leaves a choice about, the
first of which the prefill decides; the weights once a step of WIDTH rows, and each row's keys and values once a step.

Covered: dense decoder models that state their shape as Llama does. Softmax, norms and activations count as nothing, so
no system can reach the floor; it says how much room is left at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.throughput import Rates

WIDTH = 16
"""Rows at once: the callers there are."""


@dataclass(frozen=True)
class Shape:
    """What one token costs."""

    block_flops: float
    """A token through all layers, without attention's sums."""
    head_flops: float
    """From the last hidden state to the logits."""
    pair_flops: float
    """A token attending to one token."""
    weight_bytes: float
    kv_bytes: float
    """Keys and values of one token."""


@dataclass(frozen=True)
class PrefillWork:
    """The prompt tokens that must be computed."""

    tokens: int
    pairs: int
    """Over these tokens, the tokens that each attends to."""


def shape_of(config: dict[str, Any], weight_bits: float = 32) -> Shape | None:
    """The shape that a `config.json` states; None where it is not a dense model in Llama's terms.

    Args:
        config: as mlx_lm reads it.
        weight_bits: a weight's, as it lies in memory; 32 on the CPU, where quantized weights are expanded.
    """
    wanted = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if any(name not in config for name in wanted) or any("expert" in name for name in config):
        return None
    hidden, layers, heads, inner, vocabulary = (config[name] for name in wanted)
    width = config.get("head_dim") or hidden // heads
    groups = config.get("num_key_value_heads") or heads
    # Queries and output; keys and values; the three matrices of the feed-forward part.
    block = layers * (2 * hidden * heads * width + 2 * hidden * groups * width + 3 * hidden * inner)
    head = hidden * vocabulary
    return Shape(
        block_flops=2 * block,
        head_flops=2 * head,
        pair_flops=layers * 4 * heads * width,
        weight_bytes=(block + head) * weight_bits / 8,
        kv_bytes=layers * 2 * groups * width * min(weight_bits, 32) / 8,
    )


def prefill_work(prompts: Sequence[Sequence[int]], known: Sequence[Sequence[int]] = ()) -> PrefillWork:
    """The nodes of the tree that `prompts` make beside the one that `known` make.

    In sorted order, what a prompt adds begins where it parts from the one before it.
    """
    everything, seen = _nodes([*prompts, *known]), _nodes(known)
    return PrefillWork(tokens=everything.tokens - seen.tokens, pairs=everything.pairs - seen.pairs)


def _nodes(prompts: Sequence[Sequence[int]]) -> PrefillWork:
    tokens = pairs = 0
    before: Sequence[int] = ()
    for prompt in sorted(map(tuple, prompts)):
        shared = 0
        while shared < min(len(prompt), len(before)) and prompt[shared] == before[shared]:
            shared += 1
        tokens += len(prompt) - shared
        pairs += (len(prompt) * (len(prompt) + 1) - shared * (shared + 1)) // 2
        before = prompt
    return PrefillWork(tokens=tokens, pairs=pairs)


def free_tokens(matcher: Any, tokenizer: Any, text: str) -> int:
    """Tokens of `text` that its grammar leaves a choice about.

    Args:
        matcher: a fresh llguidance matcher.
        tokenizer: with `encode` and `decode`, of the same model.
        text: a reply that matches.
    """
    written: list[int] = []
    free = 0
    while not matcher.is_stopped() and not matcher.is_error():
        if forced := matcher.compute_ff_tokens():
            matcher.consume_tokens(forced)
            written += forced
            continue
        rest = text[len(tokenizer.decode(written)) :]
        if not rest:
            break
        token = tokenizer.encode(rest, add_special_tokens=False)[0]
        if not matcher.consume_token(token):
            break
        written.append(token)
        free += 1
    return free


def least_seconds(
    shape: Shape, rates: Rates, prompts: PrefillWork, replies: int, free: float, context: float, *, primed: bool
) -> float:
    """The floor of one burst.

    Args:
        prompts: what `prefill_work` counted.
        replies: requests of the burst.
        free: tokens of a reply that are decided, on average, at least 1.
        context: tokens that a decoded token attends to, on average.
        primed: the shared beginning is kept already.
    """
    batches = math.ceil(replies / WIDTH)
    operations = prompts.tokens * shape.block_flops + prompts.pairs * shape.pair_flops + replies * shape.head_flops
    read = (batches + (not primed)) * shape.weight_bytes
    prefill = max(operations / rates.flops, read / rates.bytes)
    steps = max(free - 1, 0.0)
    operations = replies * steps * (shape.block_flops + shape.head_flops + context * shape.pair_flops)
    read = batches * steps * shape.weight_bytes + replies * steps * context * shape.kv_bytes
    return prefill + max(operations / rates.flops, read / rates.bytes)
