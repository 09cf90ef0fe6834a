"""Signatures and modules by name. Versions with their verdicts are `dspy_toolkit.programs`: nothing here is promoted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ProjectError, RegistryError, nearest
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.store import canonical_json

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


def check_signature(signature: Any, where: str) -> type[dspy.Signature]:
    """`signature`, if it is one that asks and answers something.

    Raises:
        ProjectError: it is none, or has no input or no output.
    """
    if not (isinstance(signature, type) and issubclass(signature, dspy.Signature)):
        raise ProjectError(f"{where}: {signature!r} is no dspy.Signature. Give the class itself.")
    for side in ("input", "output"):
        if not getattr(signature, f"{side}_fields"):
            raise ProjectError(f"{where}: {signature.__name__} has no {side} field. Give it one.")
    return signature


class SignatureRegistry:
    """Signatures by project, in this process. A project that flows find by its name is `dspy_toolkit.Project`."""

    def __init__(self) -> None:
        self._signatures: dict[str, dict[str, type[dspy.Signature]]] = {}

    def register_project(self, project_name: str, signatures: Mapping[str, type[dspy.Signature]]) -> None:
        """Add a project's signatures, all of them or, where one cannot be used, none.

        Raises:
            ProjectError: one is no signature, or has no input or no output.
        """
        checked = {name: check_signature(each, f"{project_name}, {name}") for name, each in signatures.items()}
        self._signatures.setdefault(project_name, {}).update(checked)

    def get_project_signatures(self, project_name: str) -> dict[str, type[dspy.Signature]]:
        """A project's signatures by name; empty where nobody registered any."""
        return dict(self._signatures.get(project_name, {}))

    def list_projects(self) -> list[str]:
        """The projects, in the order of their registration."""
        return list(self._signatures)

    def fields(self, project_name: str, signature: str) -> dict[str, Any]:
        """Field name → type.

        Raises:
            ProjectError: there is no such signature.
        """
        known = self._signatures.get(project_name, {})
        if signature not in known:
            raise ProjectError(f"{project_name} has no signature {signature!r}.{nearest(signature, known)}")
        return fields_of(dspy.Predict(known[signature]))


class ModuleManager:
    """Modules by name: those registered in this process, then the champions of this home's registry."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._modules: dict[str, dspy.Module] = {}

    def register_module(self, name: str, module: dspy.Module) -> None:
        """Keep a module under a name, in this process.

        Raises:
            ProjectError: it is no module.
        """
        if not isinstance(module, dspy.Module):
            raise ProjectError(f"{name} is {module!r}. Give a dspy.Module.")
        self._modules[name] = module

    def get_module(self, name: str) -> dspy.Module:
        """The module of that name: a registered one, else the program that `load_program` finds.

        Raises:
            RegistryError, ProjectError: nothing has that name.
        """
        from dspy_toolkit.registry.programs import load_program

        if name in self._modules:
            return self._modules[name]
        return load_program(self._settings, name).program

    def list_modules(self) -> list[str]:
        """Registered modules and projects with saved versions, sorted."""
        from dspy_toolkit.registry import list_projects

        return sorted({*self._modules, *list_projects(self._settings)})

    def save_module(self, name: str, path: str | Path) -> None:
        """Write a module's state as DSPy's JSON, whole or not at all."""
        from dspy_toolkit.optimizers.states import state_of

        write_file(Path(path), canonical_json(state_of(self.get_module(name))), RegistryError)

    def load_module(self, name: str, path: str | Path) -> dspy.Module:
        """A copy of the module of that name with the state of a file, which is registered in its place. Nothing is unpickled.

        Raises:
            RegistryError: the file cannot be read, or holds another program's state.
        """
        from dspy_toolkit.optimizers.states import fill, state_of
        from dspy_toolkit.registry.bundle import check_state

        try:
            state = json.loads(Path(path).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise RegistryError(f"{path} cannot be read: {error}. Give a file that save_module wrote.") from error
        module = self.get_module(name)
        if not isinstance(state, dict) or state.keys() != state_of(module).keys():
            raise RegistryError(f"{path} holds the state of another program than {name}. Give one of {name}.")
        check_state(state, str(path))
        self._modules[name] = fill(module.deepcopy(), state)
        return self._modules[name]
