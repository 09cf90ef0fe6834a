"""Measuring by how much the engine had best do at once on this machine, and keeping it: `dspy-toolkit doctor --tune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dspy_toolkit.doctor.findings import Finding
from dspy_toolkit.errors import SettingsError

if TYPE_CHECKING:
    from dspy_toolkit.lm.engine.rules import Rules
    from dspy_toolkit.settings import Settings

SECONDS = 60.0


def tune(settings: Settings, seconds: float = SECONDS) -> Iterator[Finding]:
    """Measure for the model of `[lm]`, which is loaded, and keep what was found in the home, where engines look for it.

    Args:
        settings: the model, the home, and how long to wait for the accelerator.
        seconds: to measure for, about; loading, and what a single pass takes, come on top.

    Yields:
        The measured rates, then the rules that follow.

    Raises:
        SettingsError: the model is not one that an engine of this process runs, or the rules cannot be written.
        ToolkitError: the model cannot be found or loaded, or another process kept the accelerator.
    """
    from dspy_toolkit.lm.engine.rules import remember
    from dspy_toolkit.lm.engine.tuning import tune as measure
    from dspy_toolkit.lm.models.hardware import inspect_hardware
    from dspy_toolkit.lm.models.lease import acquire
    from dspy_toolkit.lm.models.memory import plan_model
    from dspy_toolkit.lm.models.weights import find_weights

    if not settings.lm.model.startswith("mlx/") or settings.lm.backend == "torch":
        raise SettingsError(
            f"{settings.lm.model} is not run by the engine. Tune a model of the form mlx/NAME (lm.model)."
        )
    hardware, weights = inspect_hardware(), find_weights(settings.lm.model, settings.path())
    plan = plan_model(weights, hardware, settings.lm)
    lease = acquire(hardware.device, settings.lm.lease_seconds) if settings.lm.lease == "wait" else None
    try:
        found = measure(weights, plan, hardware, seconds)
    finally:
        if lease is not None:
            lease.release()
    remember(settings.path(), weights.name, hardware, found.rules)
    yield Finding(subject="rules", name="prompts", value=f"tokens a second by piece: {_rates(found.reading)}")
    yield Finding(subject="rules", name="replies", value=f"tokens a second by sequences at once: {_rates(found.steps)}")
    if found.rules.width is not None:
        width = f"{found.rules.width} sequences, where memory allows and lm.batch_size is not set"
        yield Finding(subject="rules", name="batch width", value=f"{width}: measured")
    yield from rules_in_force(found.rules, f"measured for {weights.name}")


def rules_in_force(rules: Rules, origin: str) -> Iterator[Finding]:
    """What an engine goes by, beside the batch width, which is a part of the memory's plan.

    Args:
        rules: those of the model on this machine.
        origin: where they come from.
    """
    yield Finding(subject="rules", name="chunk", value=f"{rules.chunk} tokens of a prompt between two steps: {origin}")
    fill = f"a step is a token wider while {rules.fill:.0%} of its sequences need it"
    yield Finding(subject="rules", name="fill", value=f"{fill}: {origin}")


def _rates(rates: Mapping[int, float]) -> str:
    return ", ".join(f"{size}: {rate:,.0f}" for size, rate in rates.items())
