"""What the engine did for the rows of one look, by its own counters: how much of the prompts it knew, and how long its steps took.

`EngineMeter` reads the counters before and after each stretch of work and adds the stretches up. `prefix_hit_ratio` and
`step_overhead` are what the exporter and `benchmarks.throughput` call so. All are of the engine's own time: a look begins with
loading the model, and wall time would be mostly that.

Not covered: requests of other threads of this process in the same stretch, which count too; engines of other processes, and models
that LiteLLM reaches elsewhere, of which there are no figures; and replies from the cache, for which no engine was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import Field

from dspy_toolkit.lm.litellm.provider import served
from dspy_toolkit.lm.protocol import EngineStats
from dspy_toolkit.store import Frozen


class EngineFigures(Frozen):
    """An engine's work in a while. What it does not count is None."""

    requests: int = Field(ge=1)
    """That it finished."""
    prefix_hit_ratio: float | None
    """Of the prompts' tokens, the share that came from a shared prefix, in [0, 1]."""
    tokens_per_second: float | None
    """Of replies, over the time of prefilling and of decoding steps."""
    step_rows: float | None
    """Mean sequences of a decoding step."""
    step_ms: float | None
    """Mean milliseconds of a decoding step."""
    step_overhead: float | None
    """Of these, milliseconds beside the model."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """For MLflow, by name."""
        return {f"engine_{name}": value for name, value in self.model_dump().items()}

    @property
    def sentence(self) -> str:
        """For people."""
        said = [f"{self.requests} requests"]
        if self.prefix_hit_ratio is not None:
            said.append(f"{self.prefix_hit_ratio:.0%} of the prompts' tokens from a shared prefix")
        if self.tokens_per_second is not None:
            said.append(f"{self.tokens_per_second:.1f} tokens/s of replies")
        if self.step_rows is not None:
            said.append(f"{self.step_rows:.1f} sequences a step")
        if self.step_ms is not None:
            said.append(f"{self.step_ms:.2f} ms a step")
        if self.step_overhead is not None:
            said.append(f"{self.step_overhead:.2f} ms of it beside the model")
        return ", ".join(said)


class EngineMeter:
    """Adds up what the engine of one model did."""

    def __init__(self, model: str) -> None:
        """Args: model: its name, with the weights' hash, as a connection has it."""
        self._model = model
        self._counts = dict.fromkeys(EngineStats.model_fields, 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside. The engine may be made there, and another may take its place."""
        before = served().get(self._model)
        start = EngineStats() if before is None else before.stats()
        try:
            yield
        finally:
            if (engine := served().get(self._model)) is not None:
                if engine is not before:
                    start = EngineStats()
                end = engine.stats()
                for name in self._counts:
                    self._counts[name] += getattr(end, name) - getattr(start, name)

    @property
    def figures(self) -> EngineFigures | None:
        """Of all stretches together; None where no engine of this process answered."""
        return figures_of(self._counts)


def figures_of(counts: Mapping[str, float]) -> EngineFigures | None:
    """The figures of what was counted; None without a finished request.

    Args:
        counts: how much each field of `EngineStats` has grown.
    """
    if counts["finished"] < 1:
        return None
    steps, model = counts["steps"], counts["model_seconds"]
    seconds = counts["step_seconds"] + counts["prefill_model_seconds"]
    replied = counts["decoded_tokens"] + counts["forced_tokens"]
    return EngineFigures(
        requests=int(counts["finished"]),
        prefix_hit_ratio=counts["reused_tokens"] / counts["prompt_tokens"] if counts["prompt_tokens"] else None,
        tokens_per_second=replied / seconds if replied and seconds else None,
        step_rows=counts["batched_rows"] / steps if steps else None,
        step_ms=1000 * counts["step_seconds"] / steps if steps else None,
        # An engine that does not tell its model's time from its own has 0.
        step_overhead=1000 * max(counts["step_seconds"] - model, 0.0) / steps if steps and model else None,
    )
