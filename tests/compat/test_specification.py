"""docs/specification.md: every name of the specification has a row, and every row's example is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dspy_toolkit import compat
from tests.documentation.shell import ROOT, all_sections
from tests.engines import own_engines

PAGE = "docs/specification.md"
NAMES = [
    "DSPyConfig",
    "DSPyFramework",
    "register_project_signatures",
    "optimize_module",
    "SignatureRegistry",
    "OptimizerEngine.select_optimizer",
    "ModuleManager",
    "OptimizationResult",
    "OptimizerType",
    "ProjectSignatureConfig",
    "AppleSiliconConfig",
    "LLMProviderConfig",
    "MLXLLMProvider",
    "ProductionDSPyHandler.execute_with_fallback",
    "DSPyIntegrationError",
    "OptimizerFailureError",
    "SignatureValidationError",
    "MLXProviderError",
    "LoRAOptimizationSignature",
    "LoRATrainingSignature",
    "DiffusionOptimizationSignature",
    "SamplingScheduleSignature",
    "CLIPDomainAdaptationSignature",
    "ContrastiveLossSignature",
    "FederatedLearningSignature",
    "ClientUpdateSignature",
]
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \| `(.+)` \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    return ROW.findall((ROOT / PAGE).read_text(encoding="utf-8"))


def test_every_name_has_a_row_and_no_row_is_empty() -> None:
    found = rows()
    assert sorted(name for name, _, _ in found) == sorted(NAMES)
    assert all(stands.strip() and example.strip() for _, stands, example in found)
    assert {name.split(".")[0] for name in NAMES} - {"register_project_signatures", "optimize_module"} == {
        *compat.__all__
    }


def test_every_example_is_true_and_uses_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [before] = [section.python[0] for section in all_sections() if section.page == PAGE and section.python]
    names: dict[str, object] = {}
    with own_engines():
        exec(before, names)
        for name, _, example in rows():
            assert name.rpartition(".")[2] in example or name in LOOKED_AT, name
            assert eval(example, names), f"{name}: {example}"


LOOKED_AT = {"DSPyFramework": "framework", "MLXLLMProvider": "llm_provider", "SignatureRegistry": "signature_registry",
             "OptimizationResult": "optimization_history", "ModuleManager": "module_manager"}  # fmt: skip
"""Names that an example uses through the framework that the page makes before."""


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="handle_dspy_errors"):
        _ = compat.handle_dspy_errors
