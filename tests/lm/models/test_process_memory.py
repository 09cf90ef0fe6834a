"""Engines of one process share its memory: each has what it needs, and gives up the rest in proportion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import ModelTooLarge
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import MINIMUM_CONTEXT, MemoryPlan, plan_memory
from dspy_toolkit.lm.models.process_memory import ProcessMemory, needed
from dspy_toolkit.settings import LMSettings
from tests.lm.models.test_memory import GIB, M2_MAX_64GB, MIB, machine, most_bytes

TOKEN = 100 * 1024


def join(process: ProcessMemory, hardware: Hardware, model: int, held: int = 0, **fields: Any) -> MemoryPlan:
    def plan(seen: Hardware, taken: int) -> MemoryPlan:
        return plan_memory(seen, model, TOKEN, LMSettings(**fields), 8192, taken_bytes=taken)

    return process.join(plan, hardware, lambda: held)


def test_one_engine_has_what_it_planned() -> None:
    process, hardware = ProcessMemory(), machine("cpu", 16 * GIB, 8 * GIB)
    plan = join(process, hardware, GIB)
    assert process.in_force(plan) is plan
    assert plan == plan_memory(hardware, GIB, TOKEN, LMSettings(), 8192)
    assert process.limits(plan) == (plan.cache_limit_bytes, None)


def test_two_that_fit_shrink_nothing_and_add_up() -> None:
    process, hardware = ProcessMemory(), machine("metal", 64 * GIB, 50 * GIB, M2_MAX_64GB)
    plans = [join(process, hardware, GIB), join(process, hardware, 2 * GIB)]
    assert [process.in_force(plan) for plan in plans] == plans
    cache, wired = process.limits(plans[0])
    assert cache == sum(plan.cache_limit_bytes for plan in plans)
    assert wired == sum(plan.wired_limit_bytes or 0 for plan in plans)
    process.leave(plans[0])
    assert process.limits(plans[1]) == (plans[1].cache_limit_bytes, plans[1].wired_limit_bytes)


def test_a_second_engine_makes_the_first_give_way_until_it_is_closed() -> None:
    process, hardware = ProcessMemory(), machine("cpu", 8 * GIB, 5 * GIB)
    first = join(process, hardware, GIB)
    # Loaded meanwhile: a gigabyte of what was available is held.
    loaded = machine("cpu", 8 * GIB, 4 * GIB)
    second = join(process, loaded, GIB, held=GIB)
    now = [process.in_force(first), process.in_force(second)]
    assert sum(most_bytes(plan) for plan in now) <= 5 * GIB - first.reserve_bytes
    assert now[0].kv_budget_bytes < first.kv_budget_bytes
    assert all(plan.context_size >= MINIMUM_CONTEXT for plan in now)
    assert all(plan.kv_budget_bytes >= plan.context_size * TOKEN - TOKEN for plan in now)
    process.leave(second)
    process.leave(second)
    assert process.in_force(first) == first


def test_one_too_many_is_refused_and_changes_nothing() -> None:
    process, hardware = ProcessMemory(), machine("cpu", 8 * GIB, 5 * GIB)
    first = join(process, hardware, 2 * GIB)
    with pytest.raises(ModelTooLarge, match=r"less .* that other models of this process need"):
        join(process, hardware, 2 * GIB)
    assert process.in_force(first) == first


def test_a_limit_is_one_for_all() -> None:
    process, hardware = ProcessMemory(), machine("cpu", 32 * GIB, 24 * GIB)
    plans = [join(process, hardware, GIB, memory_limit_gb=4) for _ in range(2)]
    assert sum(most_bytes(process.in_force(plan)) for plan in plans) <= 4 * GIB


@settings(deadline=None)
@given(
    available=st.integers(GIB, 64 * GIB),
    models=st.lists(st.integers(MIB, 8 * GIB), min_size=1, max_size=5),
    leaves=st.sets(st.integers(0, 4)),
)
def test_the_laws_of_sharing(available: int, models: list[int], leaves: set[int]) -> None:
    process, hardware = ProcessMemory(), machine("cpu", 64 * GIB, available)
    plans = []
    for model in models:
        try:
            plans.append(join(process, hardware, model))
        except ModelTooLarge:
            continue
        now = [process.in_force(plan) for plan in plans]
        assert sum(most_bytes(plan) for plan in now) <= available
        assert all(most_bytes(plan) >= needed(plan) for plan in now)
    before = [process.in_force(plan) for plan in plans]
    for at, plan in enumerate(plans):
        if at in leaves:
            process.leave(plan)
    for at, plan in enumerate(plans):
        if at not in leaves:
            assert process.in_force(plan).kv_budget_bytes >= before[at].kv_budget_bytes
