"""By how much the engine does at once: tokens of a prompt, sequences, tokens of each in a step. The best differ by device and model.

What a device gets by default was measured on CPUs, and reckoned for GPUs. `tuning` measures them for one model on one machine;
they are kept in `HOME/tuned.json`, and hold while machine, device and MLX are those they were measured with.

Not covered: from which length on a shared prefix pays, which is measured each time a model is loaded (`sharing`).
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dspy_toolkit.durable import set_aside, write_file
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.locks import held
from dspy_toolkit.settings import LMSettings
from dspy_toolkit.store import Frozen

FILE_NAME = "tuned.json"


class Rules(Frozen):
    """What the engine goes by."""

    chunk: int = Field(ge=16, le=65_536)
    """Tokens prefilled between two decoding steps: a long prompt delays the others by so many."""
    fill: float = Field(gt=0, le=1)
    """A step is one token wider while this share of the sequences has another token pending: the time of a position more, over
    that of the step which it saves."""
    width: int | None = Field(default=None, ge=1, le=256)
    """Sequences at once, where `lm.batch_size` was not set; None for its default."""

    def applied(self, settings: LMSettings) -> LMSettings:
        """The settings of an engine that goes by these rules."""
        if self.width is None or "batch_size" in settings.model_fields_set:
            return settings
        return settings.model_copy(update={"batch_size": self.width})


DEFAULT = {
    "cpu": Rules(chunk=512, fill=0.5),
    "metal": Rules(chunk=2048, fill=0.5),
    "cuda": Rules(chunk=2048, fill=0.5),
}
"""By device. On two cores 512 tokens take most of a second, and half of a step of sixteen sequences goes into reading the weights."""


class _Kept(Frozen):
    """What stands in the file for a model."""

    rules: Rules
    measured_on: dict[str, Any]


def rules_of(home: Path, model: str, hardware: Hardware) -> Rules:
    """What was measured for a model on this machine, or what its device gets by default.

    Args:
        home: the folder of `tuned.json`; one that is damaged is set aside, with a warning.
        model: the full name, with the hash of its weights.
    """
    try:
        kept = _Kept.model_validate(_read(home / FILE_NAME).get(model))
    except ValidationError:  # nothing is kept, or somebody has edited it
        return DEFAULT[hardware.device]
    return kept.rules if kept.measured_on == _where(hardware) else DEFAULT[hardware.device]


def remember(home: Path, model: str, hardware: Hardware, rules: Rules) -> None:
    """Keep what was measured, in place of what was kept before.

    Raises:
        SettingsError: it cannot be written; what was kept is as it was.
    """
    path = home / FILE_NAME
    with held(path.with_name(f"{FILE_NAME}.lock"), 10.0, SettingsError):
        kept = _read(path) | {model: _Kept(rules=rules, measured_on=_where(hardware)).model_dump()}
        write_file(path, json.dumps(kept, indent=2).encode(), SettingsError)


def _where(hardware: Hardware) -> dict[str, Any]:
    return {"device": hardware.device, "chip": hardware.chip, "cores": hardware.cores, "mlx": version("mlx")}


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        set_aside(path, str(error))
        return {}
    return kept if isinstance(kept, dict) else {}
