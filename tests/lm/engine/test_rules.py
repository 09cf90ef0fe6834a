"""By how much the engine does at once: what is measured, kept, and gone by."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.engine.rules import DEFAULT, FILE_NAME, Rules, remember, rules_of
from dspy_toolkit.lm.engine.tuning import _while_it_grows, rules_from, tune
from dspy_toolkit.lm.models.hardware import inspect_hardware
from dspy_toolkit.lm.models.memory import plan_model
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.settings import LMSettings
from tests.lm.tiny import Kind

HERE = inspect_hardware()
OTHERS = {"chunk": 256, "fill": 0.25, "width": 4}
MODEL = "mlx/some@01234567"


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    assert rules_of(tmp_path, MODEL, HERE) == DEFAULT[HERE.device]
    remember(tmp_path, MODEL, HERE, Rules(**OTHERS))
    remember(tmp_path, "mlx/other@01234567", HERE, Rules(chunk=64, fill=1.0))
    assert rules_of(tmp_path, MODEL, HERE) == Rules(**OTHERS)


@pytest.mark.parametrize("change", [{"chip": "another"}, {"cores": 99}, {"device": "cuda"}])
def test_what_another_machine_measured_does_not_hold(tmp_path: Path, change: dict[str, Any]) -> None:
    remember(tmp_path, MODEL, HERE, Rules(**OTHERS))
    other = HERE.model_copy(update=change)
    assert rules_of(tmp_path, MODEL, other) == DEFAULT[other.device]


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).write_text('{"mlx/')
    with caplog.at_level(logging.WARNING):
        assert rules_of(tmp_path, MODEL, HERE) == DEFAULT[HERE.device]
    assert f"{FILE_NAME} is damaged" in caplog.text
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("kept", ["text", {}, {"rules": None, "measured_on": {}}])
def test_what_somebody_wrote_there_does_not_hold(tmp_path: Path, kept: Any) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({MODEL: kept}))
    assert rules_of(tmp_path, MODEL, HERE) == DEFAULT[HERE.device]


def test_a_busy_machine_makes_no_small_size_the_best() -> None:
    """However slow it is, the usual size is measured; what comes behind it is not, when the time is over."""
    rates = _while_it_grows((1, 2, 4, 8, 16, 32), lambda size: float(size), 0.0, 16)
    assert list(rates) == [1, 2, 4, 8, 16]
    assert list(_while_it_grows((1, 2, 4, 8, 16), lambda size: 1 / size, 1e12, 16)) == [1, 2, 4]


@pytest.mark.parametrize("rules", [{"chunk": 0, "fill": 0.5}, {"chunk": 512, "fill": 7}, {}])
def test_rules_that_are_none_do_not_hold(tmp_path: Path, rules: dict[str, Any]) -> None:
    remember(tmp_path, MODEL, HERE, Rules(**OTHERS))
    kept = json.loads((tmp_path / FILE_NAME).read_text())
    kept[MODEL]["rules"] = rules
    (tmp_path / FILE_NAME).write_text(json.dumps(kept))
    assert rules_of(tmp_path, MODEL, HERE) == DEFAULT[HERE.device]
    with pytest.raises(ValidationError):
        Rules.model_validate(rules)


def test_the_smallest_that_is_nearly_the_best_is_chosen() -> None:
    reading = {128: 700.0, 256: 960.0, 512: 990.0, 1024: 1000.0}
    steps = {1: 20.0, 8: 80.0, 16: 82.0}

    def more(seconds: float) -> Callable[[int], float]:
        return {8: seconds}.__getitem__

    # A step of eight takes a tenth of a second; a second position adds three tenths to it.
    assert rules_from(reading, steps, more(0.13), "cpu") == Rules(chunk=256, width=8, fill=0.3)
    assert rules_from({}, {}, more(0.1), "metal") == DEFAULT["metal"]
    assert rules_from({}, steps, more(0.101), "cpu").fill == 0.1, "noise does not make all steps wider"
    assert rules_from({}, steps, more(0.3), "cpu").fill == 1.0


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_a_model_is_measured(kind: Kind, tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    weights = find_weights(f"mlx/{tiny(kind)}", tmp_path)
    found = tune(weights, plan_model(weights, HERE, LMSettings()), HERE, seconds=1.0)
    assert found.rules.chunk in found.reading and found.rules.width in found.steps
    assert all(rate > 0 for rate in [*found.reading.values(), *found.steps.values()])


def test_an_engine_goes_by_them(model_home: Path) -> None:
    weights = find_weights("mlx/smollm2-135m", model_home)
    rules = Rules(chunk=32, fill=0.25, width=3)
    for settings, width in ((LMSettings(lease="share"), 3), (LMSettings(lease="share", batch_size=5), 5)):
        engine = Engine(weights, settings, HERE, rules)
        try:
            assert engine._plan.batch_width == width, "a setting that was made stands"
            assert engine._rules is rules
        finally:
            engine.close()
