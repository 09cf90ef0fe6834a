"""The figures are PNGs of the promised size, whatever the numbers, from any thread."""

from __future__ import annotations

import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from dspy_toolkit.report.plots import comparison_plot


class Mean(NamedTuple):
    mean: float
    low: float
    high: float


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize(
    ("champion", "delta", "low", "high"),
    [
        (Mean(0.5, 0.4, 0.6), 0.1, 0.02, 0.18),
        (Mean(0.5, 0.4, 0.6), -0.1, -0.18, -0.02),
        (Mean(0.0, 0.0, 0.0), 0.0, 0.0, 0.0),
        (Mean(0.0, 0.0, 0.0), 1.0, 1.0, 1.0),
    ],
)
def test_the_size_is_as_promised(champion: Mean, delta: float, low: float, high: float) -> None:
    png = comparison_plot(Mean(1.0, 0.9, 1.0), champion, delta, low, high, title="router@2")
    assert size(png) == (1350, 450)


def test_threads_draw_the_same_figure_and_no_window_backend_is_loaded() -> None:
    def draw(_: int) -> bytes:
        return comparison_plot(Mean(0.5, 0.4, 0.6), Mean(0.4, 0.3, 0.5), 0.1, 0.0, 0.2, level=0.975)

    with ThreadPoolExecutor(4) as pool:
        figures = set(pool.map(draw, range(8)))
    assert len(figures) == 1
    assert "matplotlib.pyplot" not in sys.modules
