"""The names of the framework's original specification, each a few lines over what stands here.

    from dspy_toolkit.compat import DSPyConfig, DSPyFramework

    framework = DSPyFramework(DSPyConfig(model_name="mlx/smollm2-135m"))
    better = framework.optimize_module(dspy.Predict("text -> label"), rows, ["accuracy"])

For code that was written to that specification. New code takes the real things: `docs/specification.md` says for every name
which, and how the two differ.

configuration  DSPyConfig, LLMProviderConfig, AppleSiliconConfig, ProjectSignatureConfig, OptimizerType
registering    SignatureRegistry, ModuleManager
optimizing     OptimizerEngine, OptimizationResult
framework      DSPyFramework
provider       MLXLLMProvider
handler        ProductionDSPyHandler

The errors are other names of `dspy_toolkit.errors`; the eight signatures are those of the built-in projects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import EngineError, ModelError, OptimizerError, ProjectError, ToolkitError

if TYPE_CHECKING:
    from dspy_toolkit.compat.configuration import (
        AppleSiliconConfig,
        DSPyConfig,
        LLMProviderConfig,
        OptimizerType,
        ProjectSignatureConfig,
    )
    from dspy_toolkit.compat.framework import DSPyFramework
    from dspy_toolkit.compat.handler import ProductionDSPyHandler
    from dspy_toolkit.compat.optimizing import OptimizationResult, OptimizerEngine
    from dspy_toolkit.compat.provider import MLXLLMProvider
    from dspy_toolkit.compat.registering import ModuleManager, SignatureRegistry
    from dspy_toolkit.projects.clip.signatures import CLIPDomainAdaptationSignature, ContrastiveLossSignature
    from dspy_toolkit.projects.diffusion.signatures import DiffusionOptimizationSignature, SamplingScheduleSignature
    from dspy_toolkit.projects.federated.signatures import ClientUpdateSignature, FederatedLearningSignature
    from dspy_toolkit.projects.lora.signatures import LoRAOptimizationSignature, LoRATrainingSignature

DSPyIntegrationError = ToolkitError
OptimizerFailureError = OptimizerError
SignatureValidationError = ProjectError
MLXProviderError = (ModelError, EngineError)
"""Two errors here, of a model that cannot be had and of one that cannot answer: `except MLXProviderError` catches both."""

__all__ = [
    "AppleSiliconConfig",
    "CLIPDomainAdaptationSignature",
    "ClientUpdateSignature",
    "ContrastiveLossSignature",
    "DSPyConfig",
    "DSPyFramework",
    "DSPyIntegrationError",
    "DiffusionOptimizationSignature",
    "FederatedLearningSignature",
    "LLMProviderConfig",
    "LoRAOptimizationSignature",
    "LoRATrainingSignature",
    "MLXLLMProvider",
    "MLXProviderError",
    "ModuleManager",
    "OptimizationResult",
    "OptimizerEngine",
    "OptimizerFailureError",
    "OptimizerType",
    "ProductionDSPyHandler",
    "ProjectSignatureConfig",
    "SamplingScheduleSignature",
    "SignatureRegistry",
    "SignatureValidationError",
]

_WHERE = {
    "AppleSiliconConfig": "compat.configuration",
    "CLIPDomainAdaptationSignature": "projects.clip.signatures",
    "ClientUpdateSignature": "projects.federated.signatures",
    "ContrastiveLossSignature": "projects.clip.signatures",
    "DSPyConfig": "compat.configuration",
    "DSPyFramework": "compat.framework",
    "DiffusionOptimizationSignature": "projects.diffusion.signatures",
    "FederatedLearningSignature": "projects.federated.signatures",
    "LLMProviderConfig": "compat.configuration",
    "LoRAOptimizationSignature": "projects.lora.signatures",
    "LoRATrainingSignature": "projects.lora.signatures",
    "MLXLLMProvider": "compat.provider",
    "ModuleManager": "compat.registering",
    "OptimizationResult": "compat.optimizing",
    "OptimizerEngine": "compat.optimizing",
    "OptimizerType": "compat.configuration",
    "ProductionDSPyHandler": "compat.handler",
    "ProjectSignatureConfig": "compat.configuration",
    "SamplingScheduleSignature": "projects.diffusion.signatures",
    "SignatureRegistry": "compat.registering",
}


def __getattr__(name: str) -> Any:
    # DSPy takes more than a second to import; who catches an error or makes a configuration needs none of it.
    if name in _WHERE:
        return getattr(import_module(f"dspy_toolkit.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
