"""When a figure has fallen, and what is compared with what."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.machine import Figure, Measurement, find_regressions, identify, keep, past_figures

HARDWARE = Hardware(
    system="Linux x86_64",
    chip="Test",
    cores=2,
    memory_bytes=16 * 2**30 + 12345,
    available_bytes=2**30,
    memory_limited_by="machine",
    metal=False,
    cuda=False,
    mps=False,
    device="cpu",
)
POSITIVE = st.floats(1e-3, 1e6)


def rate(value: float) -> Figure:
    return Figure(name="warm_prefix", value=value, unit="requests/s")


def delay(value: float) -> Figure:
    return Figure(name="step_overhead", value=value, unit="ms", better="lower")


def test_exactly_a_fifth_less_than_the_median_has_fallen_and_a_hair_more_has_not() -> None:
    history = {"warm_prefix": [10.0, 1.0, 12.0]}
    (fall,) = find_regressions([rate(8.0)], history)
    assert (fall.median, fall.runs) == (10.0, 3)
    assert fall.sentence == ("warm_prefix is 8 requests/s; the median of 3 earlier runs on this machine is 10.")
    assert not find_regressions([rate(8.01)], history)
    # 0.24 / 0.3 is a hair above 0.8 in floats.
    assert find_regressions([rate(0.24)], {"warm_prefix": [0.3]})


def test_a_time_falls_when_it_grows() -> None:
    assert find_regressions([delay(1.25)], {"step_overhead": [1.0]})
    assert not find_regressions([delay(1.24)], {"step_overhead": [1.0]})
    assert not find_regressions([delay(0.0)], {"step_overhead": [1.0]})


def test_what_has_no_history_is_not_judged() -> None:
    assert not find_regressions([rate(1.0)], {})
    assert not find_regressions([rate(1.0)], {"warm_prefix": [], "cold_prefix": [5.0]})
    assert not find_regressions([rate(1.0)], {"warm_prefix": [math.nan, 0.0, math.inf]})


@given(POSITIVE, st.lists(POSITIVE, min_size=1, max_size=9), st.floats(0.05, 0.9))
def test_a_rate_and_its_inverse_get_the_same_verdict(value: float, earlier: list[float], by: float) -> None:
    # Of an even number the median of inverses is not the inverse of the median.
    earlier = earlier if len(earlier) % 2 else earlier[1:]
    as_rate = find_regressions([rate(value)], {"warm_prefix": earlier}, by)
    as_delay = find_regressions([delay(1 / value)], {"step_overhead": [1 / each for each in earlier]}, by)
    middle = sorted(earlier)[len(earlier) // 2] if earlier else math.nan
    if not math.isclose(value, (1 - by) * middle, rel_tol=1e-6):
        assert bool(as_rate) == bool(as_delay) == (value < (1 - by) * middle)


def test_a_machine_is_its_hardware_and_not_what_is_free_of_it() -> None:
    usual = identify(HARDWARE, "mlx/m@01234567", 16, 48)
    later = HARDWARE.model_copy(update={"available_bytes": 1, "memory_bytes": 16 * 2**30})
    assert identify(later, "mlx/m@01234567", 16, 48).id == usual.id
    other = HARDWARE.model_copy(update={"cores": 4})
    ids = {
        identify(other, "mlx/m@01234567", 16, 48).id,
        identify(HARDWARE, "mlx/m@76543210", 16, 48).id,
        identify(HARDWARE, "mlx/m@01234567", 8, 48).id,
        identify(HARDWARE, "mlx/m@01234567", 16, 24).id,
        usual.id,
    }
    assert len(ids) == 5


def test_what_is_kept_is_the_history_of_the_same_conditions_only(home: Settings) -> None:
    here = identify(HARDWARE, "mlx/m@01234567", 16, 48)
    there = identify(HARDWARE, "mlx/other@01234567", 16, 48)
    assert past_figures(home, here) == {}
    for value in (1.0, 2.0):
        keep(home, Measurement(conditions=here, figures=(rate(value), delay(value))), (), "benchmark")
    keep(home, Measurement(conditions=there, figures=(rate(9.0),)), (), "benchmark")
    history = past_figures(home, here)
    assert sorted(history["warm_prefix"]) == sorted(history["step_overhead"]) == [1.0, 2.0]
    assert past_figures(home, there) == {"warm_prefix": [9.0]}
