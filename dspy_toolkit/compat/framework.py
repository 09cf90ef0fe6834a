"""The specification's front door: a configuration, and what it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_toolkit.compat.configuration import DSPyConfig
from dspy_toolkit.compat.optimizing import OptimizerEngine
from dspy_toolkit.compat.provider import MLXLLMProvider
from dspy_toolkit.compat.registering import ModuleManager, SignatureRegistry

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.lm import Connection


class DSPyFramework:
    """Signatures, modules, an optimizer and a model behind one configuration.

    Raises:
        SettingsError: the configuration does not fit.
        ModelError: its model cannot be had.
    """

    def __init__(self, config: DSPyConfig | None = None, connection: Connection | None = None) -> None:
        """Args:
        connection: the models, in place of those that `config` describes.
        """
        self.config = config or DSPyConfig()
        settings = self.config.settings()
        self.llm_provider = MLXLLMProvider(self.config, connection)
        self.signature_registry = SignatureRegistry()
        self.optimizer_engine = OptimizerEngine(settings, self.llm_provider.connection)
        self.module_manager = ModuleManager(settings)

    def register_project_signatures(self, project_name: str, signatures: Mapping[str, type[dspy.Signature]]) -> None:
        """As `SignatureRegistry.register_project`."""
        self.signature_registry.register_project(project_name, signatures)

    def optimize_module(
        self, module: dspy.Module, dataset: Iterable[Mapping[str, Any]], metrics: Sequence[str] = ("accuracy",)
    ) -> dspy.Module:
        """As `OptimizerEngine.optimize`."""
        return self.optimizer_engine.optimize(module, dataset, metrics)
