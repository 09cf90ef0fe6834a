"""The specification's names do what the real things do: proof, clear errors, no pickles."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.compat import (
    DSPyConfig,
    DSPyFramework,
    DSPyIntegrationError,
    LLMProviderConfig,
    MLXProviderError,
    ModuleManager,
    OptimizerEngine,
    OptimizerFailureError,
    OptimizerType,
    ProductionDSPyHandler,
    ProjectSignatureConfig,
    SignatureRegistry,
    SignatureValidationError,
)
from dspy_toolkit.errors import EngineFailed, ModelNotFound, RegistryError, SettingsError
from dspy_toolkit.metrics import score
from dspy_toolkit.settings import Settings
from tests.optimizers.toys import Colour, Toy, by_demos, program, records


class Asked(dspy.Signature):
    """Only asks."""

    text: str = dspy.InputField()


def test_a_better_module_comes_back_with_proof_and_is_told_in_the_history(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.knows = by_demos
    quick = toy.settings.optimize.model_copy(update={"optimizer": "labelled", "budget": "150"})
    engine = OptimizerEngine(toy.settings.model_copy(update={"optimize": quick}), toy.connect())
    better = engine.optimize(program(), records(110), ["accuracy"])
    told = engine.optimization_history[-1]
    assert better.dump_state()["demos"]
    assert (told.optimizer_used, told.metadata["improved"], told.num_examples_used) == ("labelled", True, 110)
    assert told.optimized_performance["accuracy"] > told.original_performance["accuracy"] + 0.3
    assert told.metadata["lm_calls"] > 0 and told.optimization_time > 0


def test_a_configuration_is_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = DSPyConfig("openai", "gpt-4o-mini", 3, tmp_path, enable_tracing=True, max_retries=7, api_key="KEY")
    settings = config.settings()
    assert (settings.lm.model, settings.home) == ("openai/gpt-4o-mini", tmp_path)
    assert settings.lm.api_key is not None and settings.lm.api_key.get_secret_value() == "KEY"
    assert (settings.optimize.budget, settings.serving.trace_share) == ("heavy", 1.0)
    assert [record.getMessage()[:17] for record in caplog.records] == ["max_retries is 7 "]
    assert LLMProviderConfig("mlx", "mlx/some-7b").lm() == {"model": "mlx/some-7b"}
    with pytest.raises(SettingsError, match="optimization_level is 4. Give 1, 2 or 3"):
        DSPyConfig(optimization_level=4).settings()
    with pytest.raises(MLXProviderError, match="some-7b") as caught:
        DSPyFramework(DSPyConfig(model_name=str(tmp_path / "some-7b"), cache_dir=tmp_path))
    assert isinstance(caught.value, ModelNotFound)


def test_too_few_rows_are_an_optimizers_failure(tmp_path: Path) -> None:
    engine = OptimizerEngine(Settings(home=tmp_path))
    with pytest.raises(OptimizerFailureError, match="no validation rows"):
        engine.select_optimizer("text", 3, "low")
    assert engine.select_optimizer("diffusion", 300, "high") == "auto"
    assert engine.choice is not None and "finetune" in engine.choice.alternatives


def test_a_signature_that_cannot_be_used_registers_nothing() -> None:
    registry = SignatureRegistry()
    for bad, why in ((Asked, "no output field"), (str, "no dspy.Signature"), ("a -> b", "no dspy.Signature")):
        with pytest.raises(SignatureValidationError, match=f"mine, bad: .*{why}"):
            registry.register_project("mine", {"good": Colour, "bad": bad})  # type: ignore[dict-item]
    assert registry.list_projects() == []
    registry.register_project("mine", {"good": Colour})
    assert list(registry.fields("mine", "good")) == ["text", "label"]
    assert registry.get_project_signatures("yours") == {}
    with pytest.raises(SignatureValidationError, match="Did you mean good"):
        registry.fields("mine", "goot")


def test_a_projects_configuration_is_a_project(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nthe sky,blue\n")
    config = ProjectSignatureConfig("colours", {"colour": Colour}, OptimizerType.GEPA, ["accuracy", "f1"])
    project = config.project("colour", "rows.csv", tmp_path)
    assert (project.optimizer, project.data_path, project.dataset.outputs) == (
        "gepa",
        tmp_path / "rows.csv",
        ("label",),
    )
    right = dspy.Example(text="the sky", label="blue").with_inputs("text")
    assert score(project.metric, right, dspy.Prediction(label="blue")).value == 1.0
    with pytest.raises(SignatureValidationError, match="Did you mean colour"):
        config.project("color", "rows.csv")


def test_modules_are_kept_as_json_and_read_with_care(home: Settings, tmp_path: Path) -> None:
    manager, path = ModuleManager(home), tmp_path / "colour.json"
    changed = program()
    changed.demos = [dspy.Example(text="the sky", label="blue")]  # type: ignore[attr-defined]
    manager.register_module("colour", changed)
    manager.save_module("colour", path)
    manager.register_module("colour", program())
    assert getattr(manager.load_module("colour", path), "demos")[0]["label"] == "blue"  # noqa: B009
    assert manager.list_modules() == ["colour"]
    with pytest.raises(RegistryError, match="no program of 'never-saved'"):
        manager.get_module("never-saved@1")
    with pytest.raises(SignatureValidationError, match="Give a dspy.Module"):
        manager.register_module("text", "no module")  # type: ignore[arg-type]
    state = json.loads(path.read_text())
    for bad, why in (("{", "cannot be read"), ("[]", "another program"), (json.dumps(state | {"x": 1}), "another")):
        path.write_text(bad)
        with pytest.raises(DSPyIntegrationError, match=why):
            manager.load_module("colour", path)


class Says(dspy.Module):
    """A module of a fixed answer, or error, without a model."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers, self.asked = list(answers), 0

    def forward(self, text: str) -> dspy.Prediction:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dspy.Prediction(label=f"{answer} {text}")


def ask(handler: ProductionDSPyHandler, times: int = 1) -> list[str]:
    async def every() -> list[str]:
        return [(await handler.execute_with_fallback(text="x")).label for _ in range(times)]

    return asyncio.run(every())


def test_a_module_that_fails_is_answered_for_and_after_five_failures_left_alone() -> None:
    primary, other = Says(EngineFailed("no GPU")), Says("other")
    handler = ProductionDSPyHandler(primary, other)
    assert ask(handler, 8) == ["other x"] * 8
    assert (primary.asked, other.asked) == (5, 8)
    assert [move.why for move in handler.moves] == ["breaker_open"]


def test_a_success_counts_failures_anew_and_no_answer_is_one_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    primary = Says(ValueError("secret text"), "well", ValueError("secret text"))
    handler = ProductionDSPyHandler(primary, Says("other"), max_errors=2)
    assert ask(handler, 3) == ["other x", "well x", "other x"]
    assert primary.asked == 3
    alone = ProductionDSPyHandler(Says(ValueError("secret text")))
    with pytest.raises(DSPyIntegrationError, match="No answer from primary: ValueError. Its cause says why") as caught:
        ask(alone)
    assert isinstance(caught.value.__cause__, ValueError)
