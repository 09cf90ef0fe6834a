"""Fine-tuning as an optimizer: a tiny model that knows nothing learns a task by heart, through the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy

from dspy_toolkit import optimize
from dspy_toolkit.lm.levers import levers_of
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.settings import Settings
from tests.engines import own_engines

THINGS = {"lora": "sun", "clip": "sea"}


class Sort(dspy.Signature):
    """Sort it."""

    thing: str = dspy.InputField()
    kind: Literal["lora", "clip"] = dspy.OutputField()


def records(count: int) -> list[dict[str, Any]]:
    kinds = list(THINGS)
    return [{"thing": f"{THINGS[kinds[n % 2]]} {n} {n * 7919 % 97}", "kind": kinds[n % 2]} for n in range(count)]


def test_a_tiny_model_is_trained_proved_and_answers_with_its_adapter(
    base: Callable[..., Weights], tmp_path: Path
) -> None:
    weights = base()
    settings = Settings(
        home=tmp_path / "home", lm={"model": f"mlx/{weights.folder}", "max_tokens": 16, "lease": "share"}
    )  # pyright: ignore[reportArgumentType]
    with own_engines():
        result = optimize(dspy.Predict(Sort), records(160), settings=settings, optimizer="finetune", budget="100000")
        assert result.improved, result.reason
        assert result.compiled.winner == "finetune"
        (predictor,) = result.program.predictors()
        assert levers_of(predictor).keys() == {"format", "adapter"}
        assert (settings.path("adapters") / predictor.adapter).is_dir()  # pyright: ignore[reportAttributeAccessIssue]
        assert result.comparison.sealed is not None and result.comparison.sealed.delta > 0.2
