"""What the doctor checks of the models: where their weights are, how memory is divided beside them, how fast they
generate.

Weights are neither fetched nor converted here, and loaded only by `generation`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dspy_toolkit.doctor.findings import Finding, wrong
from dspy_toolkit.errors import ModelNotFound, ToolkitError
from dspy_toolkit.lm.roles import Role, role_model

if TYPE_CHECKING:
    from dspy_toolkit.lm.models.hardware import Hardware
    from dspy_toolkit.settings import Settings

ROLES: dict[Role, str] = {"lm": "model", "reflection": "reflection model", "teacher": "teacher", "judge": "judge"}


def models(settings: Settings, hardware: Hardware) -> Iterator[Finding]:
    """The models of the settings: where their weights are, their hash, and what each part of the memory would be for."""
    for section, name in ROLES.items():
        role, task = role_model(settings, section), role_model(settings, "lm")
        if section != "lm" and (role.model, role.api_base) == (task.model, task.api_base):
            yield Finding(subject="model", name=name, value="the same model")
        elif not role.model.startswith("mlx/"):
            key = "a key is set" if role.api_key else f"no {section}.api_key"
            if not role.api_key and not role.api_base:
                key += "; its provider's own variable may be set"
            at = f" at {role.api_base}" if role.api_base else ""
            yield Finding(subject="model", name=name, value=f"{role.model}, by LiteLLM{at} ({key})")
        else:
            try:
                yield from _weights(name, role.model, settings, hardware)
            except ToolkitError as error:
                yield wrong("model", name, role.model, str(error))


def backends(settings: Settings, hardware: Hardware) -> Iterator[Finding]:
    """The backends that would run an `mlx/` model, in the order they are tried; none is imported or called."""
    from dspy_toolkit.lm.litellm.fallback import backend_order
    from dspy_toolkit.lm.models.hardware import torch_installed
    from dspy_toolkit.lm.torch.weights import INSTALL

    def about(name: str) -> str:
        if name == "mlx":
            return f"mlx {version('mlx')} ({hardware.device})"
        if name == "torch" and torch_installed():
            return f"torch {version('torch')}"
        return name if name != "torch" else "torch (not installed)"

    order = backend_order(settings.lm)
    value = f"{', then '.join(about(name) for name in order)} (lm.backend is {settings.lm.backend})"
    if "torch" in order and not torch_installed():
        yield wrong("model", "backends", value, f"{INSTALL} Or set lm.backend to auto.")
        return
    if settings.lm.backend == "mlx" and settings.lm.fallbacks:
        advice = "lm.fallbacks are not asked: set lm.backend to auto if they should be."
        yield Finding(subject="model", name="backends", value=value, state="note", advice=advice)
        return
    if settings.lm.backend == "auto" and not torch_installed():
        value += "; torch is not installed"
    yield Finding(subject="model", name="backends", value=value)


def generation(settings: Settings) -> Iterator[Finding]:
    """Load the model and generate a short reply. Raises ToolkitError, somewhere in the chain, when it cannot."""
    from dspy_toolkit.lm import connect
    from dspy_toolkit.lm.meter import Meter

    connection = connect(settings)
    warnings = logging.getLogger("dspy.clients.lm")
    level = warnings.level
    warnings.setLevel(logging.ERROR)  # the replies are meant to be cut short
    try:
        began = time.monotonic()
        connection.lm("Hello", max_tokens=1, cache=False)
        loaded = time.monotonic()
        lm = connection.lm.copy()
        lm.meter = Meter()
        said = lm("Name three colors.", max_tokens=32, cache=False)[0]
        seconds, tokens = time.monotonic() - loaded, lm.meter.usage.completion_tokens
    finally:
        warnings.setLevel(level)
    reply = said if isinstance(said, str) else str(said.get("text", said))
    yield Finding(subject="generation", name="loading", value=f"{loaded - began:.1f} s with the first token")
    yield Finding(subject="generation", name="reply", value=repr(" ".join(reply.split())))
    yield Finding(
        subject="generation", name="speed", value=f"{tokens / seconds:.1f} tokens/s ({tokens} in {seconds:.2f} s)"
    )


def _weights(role: str, name: str, settings: Settings, hardware: Hardware) -> Iterator[Finding]:
    from dspy_toolkit.display.memory_plan import memory_lines
    from dspy_toolkit.doctor.tuning import rules_in_force
    from dspy_toolkit.lm.engine.rules import DEFAULT, rules_of
    from dspy_toolkit.lm.models.embedded import EMBEDDED
    from dspy_toolkit.lm.models.memory import plan_model, size
    from dspy_toolkit.lm.models.weights import Weights, hash_weights

    bare = re.sub(r"@[0-9a-f]{8,64}$", "", name.removeprefix("mlx/"))
    folder = _folder(bare, settings)
    if folder is None:
        later = "converted" if bare == EMBEDDED else "fetched from the hub"
        yield Finding(subject="model", name=role, value=f"{name}: {later} at the first use", state="note")
        return
    sha256 = hash_weights(folder, settings.path("models", "hashes.json"))
    weights = Weights(
        name=f"mlx/{folder.name if bare != EMBEDDED else bare}@{sha256[:8]}", folder=folder, sha256=sha256
    )
    about = f"{weights.name} in {folder}"
    try:
        rules = rules_of(settings.path(), weights.name, hardware)
        lm = rules.applied(settings.lm)
        plan = plan_model(weights, hardware, lm)
    except ToolkitError as error:
        yield wrong("model", role, about, str(error))
        return
    yield Finding(subject="model", name=role, value=f"{about}; needs {size(plan.least_bytes)} or more")
    # Each model has an engine of its own; the second one's plan is made with what the first has left.
    subject = "memory" if role == "model" else f"memory of the {role}"
    for line in memory_lines(plan, lm, "lm.batch_size" if lm is settings.lm else "measured (doctor --tune)"):
        yield Finding(subject=subject, name=line.name, value=f"{line.value}: {line.why}")
    if role == "model":
        default = rules == DEFAULT[hardware.device]
        yield from rules_in_force(
            rules,
            "what its device gets; `dspy-toolkit doctor --tune` measures it" if default else "measured (doctor --tune)",
        )


def _folder(bare: str, settings: Settings) -> Path | None:
    """Where the weights of a model are now; None when they are not on this machine yet."""
    from dspy_toolkit.lm.models.embedded import EMBEDDED
    from dspy_toolkit.lm.models.gguf import find_gguf
    from dspy_toolkit.lm.models.weights import split_adapter

    bare, _ = split_adapter(bare)
    if bare == EMBEDDED:
        folder = settings.path("models", EMBEDDED)
        if (folder / "origin.json").is_file():
            return folder
        find_gguf()
        return None
    if Path(bare).expanduser().is_dir():
        return Path(bare).expanduser().resolve()
    if bare.count("/") != 1:
        raise ModelNotFound(f"No model {bare!r}: it is not {EMBEDDED}, a folder here or a hub id. Correct lm.model.")
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(bare, "config.json")
    return Path(config).parent if isinstance(config, str) else None
