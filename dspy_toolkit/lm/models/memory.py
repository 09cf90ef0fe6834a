"""How this machine's memory is divided between a model and what it works with, and what is given up when memory runs
short.

`plan_memory` is arithmetic. What there is, less the weights and one step's activations, goes to the KV cache of the
running sequences, to kept prefixes, and to buffers that MLX keeps for reuse, in the proportion 9 : 2 : 2, each up to
what is of use. A small machine gets by with 384 MiB for sequences (held up to three times while some join and others
leave), 256 MiB for prefixes and 256 MiB for buffers, hence the proportion. A model is refused before it is loaded when
no sequence would fit beside it. `Pressure` watches what is really left while the engine runs.

Covered: the machine's memory, a container's limit, Metal's recommended working set, a CUDA device's memory. Metal's and
CUDA's part is tested on records of what they report, not on the devices. What several engines of a process take together is
`process_memory`'s. Not covered: what NumPy takes for a step on the CPU beyond its share, and a plan in words
(`display.memory_plan`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from dspy_toolkit.errors import ModelError, ModelTooLarge
from dspy_toolkit.lm.models.hardware import Hardware, loadable_memory, pressure_level
from dspy_toolkit.lm.models.weights import Weights, needed_bytes
from dspy_toolkit.settings import LMSettings
from dspy_toolkit.store import Frozen

log = logging.getLogger(__name__)

MIB = 2**20
HELD = 3
"""Times that the running sequences' KV cache is held at most, while some join: the batch as it was, the sequences
that were prefilled, and the batch that both are copied into, which grows ahead of what it holds."""
KV_LEAST, PREFIX_LEAST, CACHE_LEAST = 384 * MIB, 256 * MIB, 256 * MIB
"""Of sequences, prefixes and freed buffers: what a small machine gets by with, and what even the smallest model may
have."""
STEP_LEAST = 256 * MIB
"""Activations, masks and logits of one step."""
RESERVE_LEAST, RESERVE_MOST = 256 * MIB, 1024 * MIB
"""Left to the rest of the machine."""
MINIMUM_CONTEXT = 2048
"""Tokens that a sequence must be able to have: a prompt with a few demonstrations and its reply."""
LONG_SEQUENCE = 1536
"""Tokens of a prompt with many demonstrations and its reply; a full batch of them is as much as prefixes are worth."""
SHORT_SEQUENCE = 256
"""Tokens of one with none."""
UNKNOWN_CONTEXT = 2**20
"""Tokens, where a model does not say."""
LOOK_SECONDS = 1.0
"""Between two looks at the memory that is left."""
CALM_SECONDS = 10.0
"""After so long with memory to spare, what was given up comes back, one thing at a time."""

NORMAL, CRITICAL = 1, 4
"""macOS's levels of memory pressure; 2 is a warning."""

Shed = Literal["nothing", "prefixes", "width"]


class MemoryPlan(Frozen):
    """What each part may take. Together they are never more than `have_bytes`."""

    device: str
    """`metal`, `cuda` or `cpu`."""
    have_bytes: int
    """What there is for all of them."""
    origin: str
    """Where that number comes from, for people."""
    reserve_bytes: int
    """What is left to the rest of the machine."""
    model_bytes: int
    step_bytes: int
    """Activations, masks and logits of one step."""
    token_bytes: float
    """KV cache of one token, unquantized; 0 for a model whose cache does not grow."""
    kv_budget_bytes: int
    """KV cache of the running sequences; always enough for one of `context_size`."""
    prefix_budget_bytes: int
    """KV cache kept for shared prefixes."""
    cache_limit_bytes: int
    """Freed buffers that MLX may keep for reuse."""
    wired_limit_bytes: int | None
    """Memory that Metal may keep resident; None elsewhere."""
    batch_width: int
    """Sequences decoded together, at most."""
    context_size: int
    """Tokens of one prompt and its reply: the model's, or as many as there is memory for."""
    model_context: int
    """Tokens of the model's own context."""
    kv_bits: Literal[4, 8] | None
    """Of a number in a kept prefix; None: as the model computed it. Running sequences are never quantized."""

    @property
    def least_bytes(self) -> int:
        """What the weights and a step take, with no sequence at all."""
        return self.model_bytes + self.step_bytes


def plan_model(weights: Weights, hardware: Hardware, settings: LMSettings, taken_bytes: int = 0) -> MemoryPlan:
    """The plan for a model that is not loaded yet, by its `config.json`. Args as `plan_memory`'s.

    Raises:
        ModelTooLarge: as `plan_memory`.
        ModelError: config.json cannot be read.
    """
    need = needed_bytes(weights.folder, hardware.device)
    try:
        config = dict(json.loads((weights.folder / "config.json").read_text()))
        context = int({**config, **(config.get("text_config") or {})}.get("max_position_embeddings") or UNKNOWN_CONTEXT)
        token = token_bytes_of(config, hardware.device)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{weights.folder / 'config.json'} cannot be read: {error}. Fetch or convert the model again."
        ) from error
    return plan_memory(hardware, need, token, settings, context, weights.name, taken_bytes)


def plan_memory(
    hardware: Hardware,
    model_bytes: int,
    token_bytes: float,
    settings: LMSettings,
    context_size: int,
    name: str = "The model",
    taken_bytes: int = 0,
) -> MemoryPlan:
    """Divide what `hardware` has.

    Args:
        hardware: as it is before the model is loaded.
        model_bytes: that the weights take on the device; `weights.needed_bytes` gives them before loading.
        token_bytes: KV cache of one token, unquantized; `token_bytes_of` gives them before loading.
        settings: `batch_size` is the most that is given; `memory_limit_gb` is taken in place of what is available.
        context_size: the model's own, in tokens.
        name: of the model, for the error.
        taken_bytes: that other models of this process need (`process_memory`).

    Raises:
        ModelTooLarge: there is no room for one sequence beside the weights; with all numbers.
    """
    have, reserve, origin = _have(hardware, settings)
    if taken_bytes:
        have = max(have - taken_bytes, 0)
        origin += f", less {size(taken_bytes)} that other models of this process need"
    step = max(STEP_LEAST, model_bytes // 16)
    spare = have - model_bytes - step
    shortest = min(context_size, max(MINIMUM_CONTEXT, settings.max_tokens + MINIMUM_CONTEXT // 2))
    row = math.ceil(shortest * token_bytes)
    if spare < max(HELD * row, 0):
        need = model_bytes + step + HELD * row
        raise ModelTooLarge(
            f"{name} needs about {size(need)} on this machine's {hardware.device}: {size(model_bytes)} of weights, "
            f"{size(step)} for a step, {size(HELD * row)} for one sequence of {shortest} tokens. There are {size(have)} "
            f"({origin}). Close something, choose a smaller or more quantized model (lm.model), or lower lm.max_tokens."
        )
    usual = math.ceil(settings.batch_size * LONG_SEQUENCE * token_bytes)
    # Each part is a minimum or maximum of terms that grow with the memory, so that more memory never means less of any.
    kv = min(max(spare * 3 // 13, row), max(KV_LEAST, usual, math.ceil(context_size * token_bytes)))
    share = min(spare * 2 // 13, (spare - HELD * row) // 2)
    prefixes, cache = min(share, max(PREFIX_LEAST, usual)), min(share, max(CACHE_LEAST, usual // 2))
    width, context = settings.batch_size, context_size
    if token_bytes:
        width = max(1, min(width, int(kv / (SHORT_SEQUENCE * token_bytes))))
        context = min(context, max(shortest, int(kv / token_bytes)))
    most = model_bytes + step + HELD * kv + prefixes + cache
    wired = min(most, hardware.working_set_bytes or most) if hardware.device == "metal" else None
    return MemoryPlan(
        device=hardware.device,
        have_bytes=have,
        origin=origin,
        reserve_bytes=reserve,
        model_bytes=model_bytes,
        step_bytes=step,
        token_bytes=token_bytes,
        kv_budget_bytes=kv,
        prefix_budget_bytes=prefixes,
        cache_limit_bytes=cache,
        wired_limit_bytes=wired,
        batch_width=width,
        context_size=context,
        model_context=context_size,
        kv_bits=settings.kv_bits,
    )


def _have(hardware: Hardware, settings: LMSettings) -> tuple[int, int, str]:
    """(bytes for the engine, bytes left to the rest, where the first come from)."""
    total, working_set = hardware.memory_bytes, hardware.working_set_bytes
    if working_set is not None:
        total = working_set if hardware.device == "cuda" else min(total, working_set)
    whole = total if hardware.device == "cuda" else hardware.memory_bytes
    reserve = min(max(whole // 16, RESERVE_LEAST), RESERVE_MOST)
    if settings.memory_limit_gb is not None:
        limit = int(settings.memory_limit_gb * 2**30)
        return min(limit, total), reserve, f"lm.memory_limit_gb is {settings.memory_limit_gb:g}, of {size(total)}"
    free = hardware.loadable_bytes
    if hardware.device == "metal" and free == hardware.working_set_free_bytes:
        what = "free of the working set that Metal recommends"
    elif hardware.device == "cuda":
        what = "free on the CUDA device"
    else:
        what = f"available (limited by the {hardware.memory_limited_by})"
    return max(free - reserve, 0), reserve, f"{size(free)} {what}, less {size(reserve)} left to the rest of the machine"


def token_bytes_of(config: Mapping[str, Any], device: str) -> float:
    """KV cache of one token by a model's `config.json`, before anything is loaded; 0 where it says nothing of
    attention.

    An upper estimate: layers with a sliding window, or with no cache of their own, are counted as full ones.

    Args:
        config: as read.
        device: `cpu` computes in float32; the others as the weights do, in 16 bits as a rule.
    """
    config = {**config, **(config.get("text_config") or {})}
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads:
        return 0.0
    if rank := config.get("kv_lora_rank"):  # DeepSeek's compressed keys and values, of all heads together
        width = rank + config.get("qk_rope_head_dim", 0)
    else:
        head = config.get("head_dim") or config.get("hidden_size", 0) // heads
        width = 2 * (config.get("num_key_value_heads") or heads) * head
    plain = "float32" in (config.get("torch_dtype"), config.get("dtype"))
    return float(layers * width * (4 if device == "cpu" or plain else 2))


class Pressure:
    """What to give up as memory runs short: kept prefixes first, then half of the batch width, again and again.

    `width` and `prefix_budget_bytes` are what is in force: running sequences go on, and none joins beyond `width`. Both
    come back as memory does. For the engine's thread only.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        device: str,
        read: Callable[[str], int] = loadable_memory,
        clock: Callable[[], float] = time.monotonic,
        level: Callable[[], int | None] = pressure_level,
    ) -> None:
        """
        Args:
            read: bytes that may still be taken on a device.
            clock: seconds.
            level: macOS's own word on the machine, as `pressure_level`.
        """
        self.width, self.prefix_budget_bytes = plan.batch_width, plan.prefix_budget_bytes
        self._plan, self._device, self._read, self._clock, self._level = plan, device, read, clock, level
        self._next = self._calm_since = clock()

    def ask(self) -> Shed:
        """What to give up now. Looks at the memory once a second; in between it only reads a clock.

        Memory is short when less than half of the reserve is left, and plentiful again when all of it is. On macOS it is also
        short while the system says that it is critical, and not plentiful while the system warns.
        """
        now = self._clock()
        if now < self._next:
            return "nothing"
        self._next = now + LOOK_SECONDS
        left, reserve, level = self._read(self._device), self._plan.reserve_bytes, self._level() or NORMAL
        if left < reserve or level > NORMAL:
            self._calm_since = now
        if left < reserve // 2 or level >= CRITICAL:
            return self._shed(left)
        if now - self._calm_since >= CALM_SECONDS:
            self._calm_since = now
            self._restore()
        return "nothing"

    def _shed(self, left: int) -> Shed:
        if self.prefix_budget_bytes:
            self.prefix_budget_bytes = 0
            log.warning("Memory is short (%s left): prefixes are no longer kept.", size(left))
            return "prefixes"
        if self.width > 1:
            self.width //= 2
            log.warning("Memory is short (%s left): the batch width is now %d.", size(left), self.width)
            return "width"
        return "nothing"

    def _restore(self) -> None:
        if self.width < self._plan.batch_width:
            self.width = min(self.width * 2, self._plan.batch_width)
        elif self.prefix_budget_bytes < self._plan.prefix_budget_bytes:
            self.prefix_budget_bytes = self._plan.prefix_budget_bytes
        else:
            return
        log.info("Memory is back: batch width %d, %s of prefixes.", self.width, size(self.prefix_budget_bytes))


def size(count: float) -> str:
    """Bytes in binary units: `98.0 MB` is 98 * 2**20 bytes."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
