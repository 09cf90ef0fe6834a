"""What rows take in the caches, as they are stored: side by side, each as wide as the longest of them.

Layers differ. A full one keeps every token, a sliding or chunked one its window, a recurrent one a state of fixed size.
`measure` finds out of which kinds a loaded model is, and `stored` says what a batch of its rows takes at most, room for the
tokens to come included. Nothing here asks the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

STEP = 64
"""Tokens that a cache grows by: replies are short, and less is allocated ahead than mlx_lm does."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one row, by kind of layer."""

    growing: float
    """Of each token, in layers that keep all of them."""
    windows: tuple[tuple[float, int], ...] = ()
    """(of each token, tokens kept) of each layer that keeps the last ones."""
    fixed: float = 0.0
    """However long the row is."""
    whole_windows: bool = False
    """Whether windows are full even where rows hold few tokens of their own, beside a prefix that is held once."""

    def stored(self, rows: int, longest: int, width: int = 1) -> float:
        """What `rows` take at most.

        Args:
            longest: tokens of the longest.
            width: tokens that a pass feeds each row: a window keeps those beside its own.
        """
        room = longest + STEP
        windows = sum(
            each * (kept + width + STEP if self.whole_windows else min(room, kept + width + STEP))
            for each, kept in self.windows
        )
        return rows * (self.fixed + self.growing * room + windows)


def measure(model: Any) -> Footprint:
    """The footprint of a loaded model: one token is computed."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    mx.eval([cache.state for cache in caches])
    growing = fixed = 0.0
    windows = []
    for cache in _leaves(caches):
        arrays = [getattr(cache, name, None) for name in ("keys", "values")]
        # (batch, heads, tokens, width)
        token = sum(array.nbytes / array.shape[2] for array in arrays if array is not None and array.ndim == 4)
        kept = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
        if token == 0:
            fixed += 0 if cache.empty() else cache.nbytes
        elif kept is None:
            growing += token
        else:
            windows.append((token, int(kept)))
    return Footprint(growing, tuple(windows), fixed)


def length_of(caches: Sequence[Any]) -> int:
    """Tokens that the longest row of a batch holds for itself, as far as its caches count them."""
    for cache in _leaves(caches):
        own = getattr(cache, "own", cache)
        if hasattr(own, "padding"):
            return own._idx  # of plain keys and values, all layers hold as many
    return max((_length(cache) for cache in _leaves(caches)), default=0)


def _length(cache: Any) -> int:
    for name in ("_offset", "_idx", "offset"):
        if isinstance(length := getattr(cache, name, None), int):
            return length
    return 0


def _leaves(caches: Sequence[Any]) -> Iterator[Any]:
    for cache in caches:
        if (parts := getattr(cache, "caches", None)) is not None:
            yield from _leaves(parts)
        else:
            yield cache
