"""The memory of one process, divided among the engines in it. Safe from any thread.

An engine plans with what is free when it is made, and takes it later: so a second one must know what the first has planned.
What each needs at least (weights, a step, one sequence of some length) is its own. What it would use beyond that (more and
longer sequences, prefixes, buffers) all give up in the same proportion where it is not there for all. They get it back as
others are closed.

MLX's limits on freed buffers and on wired memory are the process's: here they are the sums of the engines'.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.memory import HELD, MINIMUM_CONTEXT, MemoryPlan


class ProcessMemory:
    """Plans of the engines that there are."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._plans: dict[int, MemoryPlan] = {}
        self._in_force: dict[int, MemoryPlan] = {}
        self._whole = 0
        """Bytes for all of them, as the last one saw it."""

    def join(
        self, plan: Callable[[Hardware, int], MemoryPlan], hardware: Hardware, held: Callable[[], int]
    ) -> MemoryPlan:
        """The plan of a new engine, which is known from now on until it `leave`s.

        Args:
            plan: makes it from what there is and the bytes that others need at least. What it raises is raised.
            hardware: as it is now.
            held: bytes that this process's engines hold already; they are not free any more.
        """
        with self._lock:
            taken = sum(needed(each) for each in self._plans.values())
            made = plan(_given_back(hardware, held()) if self._plans else hardware, taken)
            self._plans[id(made)] = made
            self._whole = made.have_bytes + taken
            self._divide()
            return made

    def leave(self, plan: MemoryPlan) -> None:
        """Forget an engine's plan; idempotent."""
        with self._lock:
            if self._plans.pop(id(plan), None) is not None:
                self._divide()

    def in_force(self, plan: MemoryPlan) -> MemoryPlan:
        """What an engine may take now: its plan, or less. One that never joined has what it planned."""
        return self._in_force.get(id(plan), plan)

    def limits(self, plan: MemoryPlan) -> tuple[int, int | None]:
        """(freed buffers, wired memory or None) of the whole process, in bytes. Args: plan: of one more, if it never joined."""
        with self._lock:
            all_plans = {id(plan): plan} | self._in_force
            wired = [each.wired_limit_bytes for each in all_plans.values() if each.wired_limit_bytes is not None]
            most = max(self._whole, *wired) if wired else 0
            return sum(each.cache_limit_bytes for each in all_plans.values()), min(sum(wired), most) if wired else None

    def _divide(self) -> None:
        least = sum(needed(plan) for plan in self._plans.values())
        more = sum(_most(plan) - needed(plan) for plan in self._plans.values())
        share = min(1.0, max(self._whole - least, 0) / more) if more else 1.0
        self._in_force = {key: _shrunk(plan, share) for key, plan in self._plans.items()}


def needed(plan: MemoryPlan) -> int:
    """Bytes that an engine cannot do without."""
    return plan.least_bytes + HELD * _row(plan)


def _row(plan: MemoryPlan) -> int:
    """Of a sequence that it must be able to have."""
    return min(math.ceil(plan.token_bytes * min(plan.context_size, MINIMUM_CONTEXT)), plan.kv_budget_bytes)


def _most(plan: MemoryPlan) -> int:
    return plan.least_bytes + HELD * plan.kv_budget_bytes + plan.prefix_budget_bytes + plan.cache_limit_bytes


def _shrunk(plan: MemoryPlan, share: float) -> MemoryPlan:
    """A plan with a share of what it has beyond what is needed."""
    if share == 1:
        return plan
    row = _row(plan)
    kv = row + int((plan.kv_budget_bytes - row) * share)
    context = int(kv / plan.token_bytes) if plan.token_bytes else plan.context_size
    changed: dict[str, Any] = {
        "kv_budget_bytes": kv,
        "prefix_budget_bytes": int(plan.prefix_budget_bytes * share),
        "cache_limit_bytes": int(plan.cache_limit_bytes * share),
        "context_size": min(plan.context_size, max(context, min(plan.context_size, MINIMUM_CONTEXT))),
    }
    return plan.model_copy(update=changed)


def _given_back(hardware: Hardware, held: int) -> Hardware:
    """What there would be if this process's engines held nothing."""
    free = hardware.working_set_free_bytes
    back: dict[str, Any] = {"available_bytes": min(hardware.available_bytes + held, hardware.memory_bytes)}
    if free is not None:
        back["working_set_free_bytes"] = min(free + held, hardware.working_set_bytes or free + held)
    return hardware.model_copy(update=back)


PROCESS = ProcessMemory()
"""This one's."""
