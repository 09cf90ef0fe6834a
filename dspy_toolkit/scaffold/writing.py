"""A new project's folder from a template.

Files of a template that end in `.j2` are rendered by jinja2, the others are copied. The folder appears whole or not at all.

Not covered: what is in the templates; each has tests of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from dspy_toolkit.durable import new_folder
from dspy_toolkit.errors import ProjectError, nearest

TEMPLATES: Mapping[str, str] = {
    "classify": "a text gets one of a few labels; no Python",
    "extract": "a text becomes typed fields",
    "generate": "facts become a text in your style",
    "advise": "a situation becomes settings, scored by what they would do",
    "rag": "a question is answered from your passages",
    "lora": "words about a fine-tuning become settings for it, from measured runs, within your limits",
    "diffusion": "the same for sampling a diffusion model",
    "clip": "the same for adapting an image-text model",
    "federated": "the same for a federated training",
}
"""Template → what a project of it does."""
READER = "reader"
"""The folder whose files the four domains share beside their own rows."""
DOMAINS: Mapping[str, Mapping[str, Any]] = {
    "lora": {
        "subject": "fine-tuning an adapter",
        "signature": "LoRAOptimizationSignature",
        "limits": {"learning_rate": 0.002},
    },
    "diffusion": {
        "subject": "sampling a diffusion model",
        "signature": "DiffusionOptimizationSignature",
        "limits": {"evaluations": 20},
    },
    "clip": {
        "subject": "adapting an image-text model",
        "signature": "CLIPDomainAdaptationSignature",
        "limits": {"learning_rate": 0.003},
    },
    "federated": {
        "subject": "a federated training",
        "signature": "FederatedLearningSignature",
        "limits": {"learning_rate": 0.3},
    },
}
"""Domain → what its files say; `limits` is an example, of a column that was measured."""
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class NewProject(NamedTuple):
    """What was written."""

    folder: Path
    project: Path
    """The file that `load_project` takes."""
    files: tuple[str, ...]
    """All files, by name."""


def new_project(name: str, template: str = "classify", into: Path | None = None) -> NewProject:
    """Write a small whole project: program, metric, rows, tests.

    Args:
        name: lower-case letters, digits, - and _, a letter first; also the name of its folder.
        template: one of TEMPLATES.
        into: the folder that its folder goes into; the working folder by default.

    Raises:
        ProjectError: the name or the template cannot be used, or the folder is there already.
    """
    if template not in TEMPLATES:
        raise ProjectError(f"There is no template {template!r}.{nearest(template, TEMPLATES)}")
    said = {"template": template, **DOMAINS.get(template, {})}
    texts: dict[str, str] = {}
    for folder in (READER, template) if template in DOMAINS else (template,):
        texts |= read_template(folder, name, said)
    return write_project(name, texts, into)


def read_template(folder: str, name: str, said: Mapping[str, Any]) -> dict[str, str]:
    """File name → text, of a template's folder for a project called `name`.

    Args:
        said: further variables of its texts.
    """
    texts = {}
    for entry in files("dspy_toolkit.scaffold").joinpath("templates", folder).iterdir():
        text = entry.read_text(encoding="utf-8")
        rendered = entry.name.endswith(".j2")
        texts[entry.name.removesuffix(".j2")] = render(text, name, said) if rendered else text
    return texts


def render(text: str, name: str, said: Mapping[str, Any]) -> str:
    """A template's text for a project called `name`. An unknown variable is an error.

    Args:
        said: further variables.
    """
    from jinja2 import Environment, StrictUndefined

    # Python and TOML are written, no page: escaping would change quotes.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    title = name.replace("-", " ").replace("_", " ")
    return environment.from_string(text).render(name=name, title=title[:1].upper() + title[1:], **said)


def write_project(name: str, texts: Mapping[str, str], into: Path | None = None) -> NewProject:
    """Write a project's files into a new folder `into/name`.

    Raises:
        ProjectError: the name cannot be used, or the folder is there already.
    """
    if not _NAME.fullmatch(name):
        raise ProjectError(
            f"project name {name!r} cannot be used. Take lower-case letters, digits, - and _, with a letter first."
        )
    folder = ((into or Path()) / name).expanduser()
    if folder.exists():
        raise ProjectError(f"{folder} is there already. Take another name, or remove it.")
    with new_folder(folder, ProjectError) as partial:
        for file, text in texts.items():
            (partial / file).write_text(text, encoding="utf-8")
    project = next(file for file in ("project.toml", "project.py") if file in texts)
    return NewProject(folder, folder / project, tuple(sorted(texts)))
