"""A program in forms that need no toolkit: plain DSPy, messages for any client, MLflow's prompt registry.

Each says what it cannot hold, rather than leaving it out unsaid: a grammar, label weights, a LoRA adapter, code.

Not covered: the bundle, which holds all of a program (`bundle`), the code of `load.py` (`loading_code`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.lm.levers import levers_of
from dspy_toolkit.project.states import levers_in_words, renamed
from dspy_toolkit.registry.bundle import bundle_bytes
from dspy_toolkit.registry.loading_code import loading_code
from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.registry.messages import SentPrompt, messages_of
from dspy_toolkit.registry.programs import load_program, load_state
from dspy_toolkit.registry.references import is_saved
from dspy_toolkit.registry.verdicts import verdict_of
from dspy_toolkit.registry.versions import find_version
from dspy_toolkit.tracking.mlflow_client import session

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

PROMPT_FORMAT = 1


class Exported(NamedTuple):
    """What an export wrote."""

    paths: tuple[Path, ...]
    left_out: tuple[str, ...]
    """What this form cannot hold, in words."""
    prompts: tuple[str, ...] = ()
    """Prompts in MLflow's registry, as `name/version`."""


def export_bundle(settings: Settings, reference: str, to: Path) -> Exported:
    """Write a program's bundle to the file `to`.

    Args:
        reference: `project@champion`, `project@3`, a folder that holds a saved program; or a project with a champion.

    Raises:
        RegistryError: nothing has that name, or it is a project's own program, which the project itself says.
    """
    state, manifest = load_state(settings, reference)
    if manifest is None:
        raise RegistryError(f"Nothing of {reference} is promoted, so there is no program to export. Optimize it first.")
    if (number := _number(settings, reference, manifest)) is not None:
        named = f"{manifest.project}@{number}"
        manifest = manifest.model_copy(update={"verdict": verdict_of(settings, named, manifest)})
    write_file(to, bundle_bytes(settings, state, manifest, number), RegistryError)
    return Exported((to,), ())


def export_dspy(settings: Settings, reference: str, folder: Path, location: str = "") -> Exported:
    """Write `program.json`, which DSPy itself loads, and `load.py`, which does so without the toolkit.

    Raises:
        RegistryError, ProjectError: the program cannot be loaded.
    """
    import dspy

    loaded = load_program(settings, reference, location)
    state = renamed(loaded.program.dump_state(), {})  # which has no lever: DSPy saves none
    left_out = [word for predictor in loaded.program.predictors() for word in levers_in_words(levers_of(predictor))]
    state["metadata"] = {"dependency_versions": _dependencies(dspy)}
    data = json.dumps(state, indent=2, ensure_ascii=False, default=str).encode()
    code = loading_code(loaded, reference)
    write_file(folder / "program.json", data, RegistryError)
    write_file(folder / "load.py", code.text.encode(), RegistryError)
    return Exported((folder / "program.json", folder / "load.py"), (*left_out, *code.left_out))


def export_prompt(settings: Settings, reference: str, to: Path, location: str = "") -> Exported:
    """Write the messages of each predictor as JSON, with `{{field}}` where an input goes, for any client.

    Raises:
        RegistryError, ProjectError: the program cannot be loaded.
    """
    loaded = load_program(settings, reference, location)
    prompts = messages_of(loaded.program, settings.for_project(loaded.project.name))
    content = {
        "format": PROMPT_FORMAT,
        "project": loaded.project.name,
        "program": reference,
        "model": loaded.manifest.model if loaded.manifest else settings.lm.model,
        "predictors": [prompt.model_dump(mode="json") for prompt in prompts],
    }
    write_file(to, json.dumps(content, indent=2, ensure_ascii=False).encode(), RegistryError)
    return Exported((to,), _not_messages(prompts))


def export_mlflow(settings: Settings, reference: str, location: str = "") -> Exported:
    """Register the messages of each predictor as a prompt of MLflow's registry, `PROJECT.prompt`, or `PROJECT.PREDICTOR.prompt`.

    Raises:
        RegistryError, ProjectError: the program cannot be loaded, or MLflow cannot be written.
    """
    loaded = load_program(settings, reference, location)
    prompts = messages_of(loaded.program, settings.for_project(loaded.project.name))
    registered = []
    with session(settings, f"The prompts of {reference} could not be registered") as mlflow:
        for prompt in prompts:
            # A prompt and a model of one name would be one entry of MLflow's registry.
            name = ".".join(filter(None, (loaded.project.name, prompt.predictor, "prompt")))
            made = mlflow.register_prompt(
                name,
                [{"role": each["role"], "content": each["content"]} for each in prompt.messages],
                commit_message=f"Exported from {reference}",
                tags={"project": loaded.project.name, "program": reference},
            )
            registered.append(f"{name}/{made.version}")
    return Exported((), _not_messages(prompts), tuple(registered))


def _number(settings: Settings, reference: str, manifest: Manifest) -> int | None:
    """The version's number; None for a folder that holds a saved program. A project's folder may have its name."""
    if is_saved(reference):
        return None
    which = reference if "@" in reference else f"{manifest.project}@champion"
    return find_version(settings, which).version


def _not_messages(prompts: tuple[SentPrompt, ...]) -> tuple[str, ...]:
    words = {
        "guided_grammar": "the grammar that holds a reply to its fields",
        "response_format": "the schema that holds a reply to its fields",
        "label_scores": "the choice by label scores",
        "adapter": "the LoRA adapter",
    }
    return tuple(word for key, word in words.items() if any(key in prompt.options for prompt in prompts))


def _dependencies(dspy: Any) -> dict[str, str]:
    from dspy.utils.saving import get_dependency_versions

    return get_dependency_versions()


def prompt_text(prompt: Mapping[str, Any]) -> str:
    """The messages of one predictor as a person reads them."""
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt["messages"])
