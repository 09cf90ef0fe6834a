"""What a device's errors mean to who asked: its memory is used up, or this process can use it no more.

MLX and torch raise a RuntimeError with the driver's text for both. CUDA keeps the second kind: whatever this process asks of
the card afterwards fails with the same, so that starting the engine's thread again helps nobody.
"""

from __future__ import annotations

from dspy_toolkit.errors import DeviceLost, EngineFailed

LOST = (
    "illegal memory access",
    "illegal address",
    "illegalAddress",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "LaunchFailure",
    "device-side assert",
    "uncorrectable ECC",
    "context is destroyed",
)
"""Of CUDA: after one of these its context is gone."""
FULL = (
    "out of memory",
    "Insufficient Memory",
    "Unable to allocate",
    "MemoryAllocation",
    "greater than the maximum allowed buffer size",
    "Resource limit",
)
"""Of CUDA, Metal, and MLX's allocators."""


def explain(error: BaseException, who: str, limit_gb: float | None) -> EngineFailed:
    """What to tell a caller whose request ended with `error`.

    Args:
        who: what failed.
        limit_gb: `lm.memory_limit_gb`, where it is set.
    """
    text = " ".join(str(error).split())
    if _says(text, LOST):
        return DeviceLost(
            f"The GPU can be used no more by this process: {text[:300]}. Start the process again; no request that it gets "
            "from now on can be answered."
        )
    if isinstance(error, MemoryError) or _says(text, FULL):
        now = "not set, and the engine took what was free" if limit_gb is None else f"{limit_gb:g} now"
        return EngineFailed(
            f"The {who} ran out of the device's memory: {text[:300]}. Lower lm.memory_limit_gb ({now}), so that it leaves "
            "more to the others on this device; what it holds has been given back, and the next request is tried again."
        )
    return EngineFailed(f"The {who} failed: {type(error).__name__}: {error}. The next request starts it again.")


def _says(text: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in text.lower() for word in words)
