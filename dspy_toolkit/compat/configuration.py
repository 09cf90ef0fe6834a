"""The specification's configuration as dataclasses, each with what it is here: settings, a model's section, a project."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import ProjectError, SettingsError
from dspy_toolkit.settings import LMSettings, Settings, load_settings

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.metrics import Metric
    from dspy_toolkit.project import Project

log = logging.getLogger(__name__)

BUDGETS = {1: "light", 2: "medium", 3: "heavy"}
"""Optimization level → budget."""
METRICS = {"accuracy": "exact_match", "f1": "token_f1"}
"""The specification's name of a metric → ours; any other name is one of ours."""
RETRIES = 3


class OptimizerType(Enum):
    """The optimizers that the specification names; `optimize` knows more."""

    BOOTSTRAP = "bootstrap"
    MIPRO = "mipro"
    GEPA = "gepa"
    AUTO = "auto"


@dataclass
class AppleSiliconConfig:
    """What the machine has; `detect` asks it."""

    chip_type: str
    total_memory: int
    """GB that this process may use."""
    metal_available: bool
    mps_available: bool
    unified_memory: bool
    optimization_level: int = 2

    @classmethod
    def detect(cls) -> AppleSiliconConfig:
        """This machine, as `dspy-toolkit doctor` sees it."""
        from dspy_toolkit.lm.models.hardware import inspect_hardware

        found = inspect_hardware()
        return cls(found.chip, found.memory_bytes // 2**30, found.metal, found.mps, unified_memory=found.metal)


@dataclass
class DSPyConfig:
    """A model, a home and a budget."""

    model_provider: str = "mlx"
    model_name: str = "mlx/smollm2-135m"
    """With or without its provider before the slash."""
    optimization_level: int = 2
    """What an optimization may spend: 1 light (300 LM calls), 2 medium (1,200), 3 heavy (5,000)."""
    cache_dir: Path | None = None
    """The home, `.dspy-toolkit` by default: it holds versions and runs beside the caches."""
    enable_tracing: bool = False
    """Whether served requests become MLflow traces. Off by default here: a trace holds inputs and outputs."""
    max_retries: int = RETRIES
    """Not taken: retries belong to the flows' tasks, and a remote server's refusals are waited for."""
    api_key: str | None = None
    base_url: str | None = None

    def settings(self) -> Settings:
        """As settings: what is stated here wins over `dspy-toolkit.toml` and the environment.

        Raises:
            SettingsError: an optimization level that there is not, or a setting that does not fit.
        """
        if self.optimization_level not in BUDGETS:
            raise SettingsError(f"optimization_level is {self.optimization_level}. Give 1, 2 or 3.")
        if self.max_retries != RETRIES:
            log.warning("max_retries is %s and is not taken: retries belong to the flows' tasks.", self.max_retries)
        given: dict[str, Any] = {
            "lm": self.model().lm(),
            "optimize": {"budget": BUDGETS[self.optimization_level]},
            "serving": {"trace_share": float(self.enable_tracing)},
        }
        return load_settings(**given, **({} if self.cache_dir is None else {"home": self.cache_dir}))

    def model(self) -> LLMProviderConfig:
        """The model alone."""
        return LLMProviderConfig(self.model_provider, self.model_name, self.api_key, self.base_url)


@dataclass
class LLMProviderConfig:
    """Where a model is, and with which key."""

    provider_type: str
    model_name: str
    api_key: str | None = None
    base_url: str | None = None
    hardware_config: AppleSiliconConfig | None = None
    """Not taken: what the machine has is looked up when a model is loaded."""

    def lm(self) -> dict[str, Any]:
        """The settings' section `[lm]`."""
        name = self.model_name
        if not name.startswith(f"{self.provider_type}/"):
            name = f"{self.provider_type}/{name}"
        given = {"model": name, "api_base": self.base_url, "api_key": self.api_key}
        return LMSettings.model_validate({key: value for key, value in given.items() if value}).model_dump(
            exclude_unset=True
        )


@dataclass
class ProjectSignatureConfig:
    """A project's signatures, and how they are optimized."""

    project_name: str
    signature_classes: Mapping[str, type[dspy.Signature]]
    default_optimizer: OptimizerType = OptimizerType.AUTO
    optimization_metrics: Sequence[str] = ("accuracy",)

    def project(self, signature: str, source: str | Path, folder: Path | None = None) -> Project:
        """The project that optimizes one of them; `dspy_toolkit.register` gives it its name in this process.

        Args:
            signature: its key in `signature_classes`.
            source: the rows, with a column for each field: .csv, .jsonl or .parquet.
            folder: what `source` is relative to; the working folder by default.

        Raises:
            ProjectError: there is no such signature, or something does not fit.
        """
        import dspy

        from dspy_toolkit.compat.registering import check_signature
        from dspy_toolkit.datasets import DatasetSpec
        from dspy_toolkit.errors import nearest
        from dspy_toolkit.project import Project

        if signature not in self.signature_classes:
            raise ProjectError(f"There is no signature {signature!r}.{nearest(signature, self.signature_classes)}")
        asked = check_signature(self.signature_classes[signature], f"{self.project_name}, {signature}")
        made = Project(
            name=self.project_name,
            summary=asked.instructions.strip().splitlines()[0],
            program=lambda: dspy.Predict(asked),
            metric=metric_of(self.optimization_metrics),
            dataset=DatasetSpec(
                source=str(source), inputs=tuple(asked.input_fields), outputs=tuple(asked.output_fields)
            ),
            optimizer=self.default_optimizer.value,
        )
        return replace(made, folder=folder or Path.cwd())


def metric_of(names: Sequence[str]) -> Metric:
    """The metric that the specification's names mean; several count the same.

    Raises:
        ProjectError: no such metric, or none is named.
    """
    from dspy_toolkit.metrics import resolve_metric
    from dspy_toolkit.metrics.composites import weighted

    found = [resolve_metric(METRICS.get(name, name), Path.cwd()) for name in names]
    return found[0] if len(found) == 1 else weighted(found)
