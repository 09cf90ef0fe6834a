"""A user's own code: importing it from where it lies, and explaining what goes wrong in it.

Covered: one file, imported under a name made from its path, so that two files called `metric.py` never meet; a module
or package of a given folder. Where one of these files, or of those that they import, changed since they were imported,
all of them are imported again: what runs is what the text in a fingerprint says (`user_sources`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from dspy_toolkit.errors import ProjectError, ToolkitError, nearest
from dspy_toolkit.user_sources import PREFIX, Sources, file_of, imported_as, is_user_code, plain_name, sources_of

_importing = threading.RLock()


def import_file(path: Path) -> ModuleType:
    """Import the Python file at `path`, or the package when it is an `__init__.py`.

    Raises:
        ProjectError: no such file, or an exception while it runs (with file, line and exception).
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ProjectError(missing_file(path))
    owner = path.parent if path.name == "__init__.py" else path
    name = f"{PREFIX}{owner.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    with _importing:
        try:
            sources = sources_of(path)
            if (module := sys.modules.get(name)) is not None:
                if imported_as.get(module) == sources.text:
                    return module
                _forget(sources)
            places = [str(owner)] if owner != path else None
            spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
            if spec is None:
                raise ProjectError(f"{path} is not a Python file. Name one that ends in .py.")
            make_importable(owner.parent)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            # Not the loader: its bytecode cache, judged by whole seconds and size, would miss a quick edit.
            exec(compile(sources.files[path], str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 the user's own file
        except (Exception, SystemExit) as error:  # isolation boundary: a user's file may raise anything
            sys.modules.pop(name, None)
            raise _failure(f"{path.name} cannot be imported", error) from error
        _refuse_others(path, sources)
        after = sources_of(path)  # it may have put a folder on the path itself
        unchanged = sources.files.items() <= after.files.items()
        imported_as[module] = after.text if unchanged else sources.text
        return module


def import_named(name: str, folder: Path | None) -> ModuleType:
    """Import the module `name`: from `folder` when it lies there, else from what is installed.

    Raises:
        ProjectError: no such module (with the nearest file of `folder`), or an exception while it runs.
    """
    first, _, rest = name.partition(".")
    if folder is not None:
        folder = folder.expanduser().resolve()
        for path in (folder / first / "__init__.py", folder / f"{first}.py"):
            # The library itself is imported once, under its own name, also for a project in its repository.
            if path.is_file() and is_user_code(path):
                module = import_file(path)
                return _import(f"{module.__name__}.{rest}", folder) if rest else module
        make_importable(folder)
    return _import(name, folder)


def _import(name: str, folder: Path | None) -> ModuleType:
    try:
        with _importing:
            module = importlib.import_module(name)
            if (file := file_of(module)) is not None and is_user_code(file):
                sources = sources_of(file, name)
                if imported_as.setdefault(module, sources.text) != sources.text:
                    _forget(sources)
                    module = importlib.import_module(name)
                    imported_as[module] = sources.text
            return module
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(f"module {plain_name(name)} cannot be imported", error) from error
        beside = {path.stem for path in folder.glob("*.py")} if folder and folder.is_dir() else set()
        where = f" in {folder} or among the installed packages" if folder else " among the installed packages"
        raise ProjectError(
            f"There is no module {plain_name(name)}{where}.{nearest(plain_name(name), beside)}"
        ) from None
    except (Exception, SystemExit) as error:  # isolation boundary: a user's module may raise anything
        raise _failure(f"module {plain_name(name)} cannot be imported", error) from error


def missing_file(path: Path) -> str:
    """Say that there is no file at `path`, with the nearest names of its folder."""
    if not path.parent.is_dir():
        return f"There is no file {path}: the folder {path.parent} does not exist. Correct the path."
    # Only the like ones: a folder may hold thousands.
    close = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"There is no file {path}.{nearest(path.name, close)} Correct the path."


def describe_error(error: BaseException) -> str:
    """An exception of a user's code with the place that raised it: `KeyError: 'label' (metric.py, line 4)`."""
    said = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    # The innermost frame of the user's own, since a fault deep inside a library does not tell them where to look.
    own = [frame for frame in frames if not frame.filename.startswith("<") and is_user_code(Path(frame.filename))]
    if place := (own or frames)[-1:]:
        return f"{said} ({Path(place[0].filename).name}, line {place[0].lineno})"
    return said


def _failure(what: str, error: BaseException) -> ToolkitError:
    if isinstance(error, ToolkitError):
        return type(error)(f"{what}: {describe_error(error)}")
    return ProjectError(f"{what}: {describe_error(error)}. Correct it and run again.")


def make_importable(folder: Path) -> None:
    """Let plain imports find the modules of `folder`."""
    # At the end, so that a user's file never stands before an installed package of the same name.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _refuse_others(path: Path, sources: Sources) -> None:
    """Refuse what would run with another file than the one its text holds: Python has one module of a name in a process."""
    for name, file in sources.names.items():
        other = file_of(sys.modules[name]) if name in sys.modules else None
        if other is None or other == file or not is_user_code(other):
            continue
        if not other.is_file() or other.read_bytes() != file.read_bytes():
            raise ProjectError(
                f"{path.name} imports {file}, but this process has imported {other} by that name. Rename one of them, or "
                "run each in a process of its own."
            )


def _forget(sources: Sources) -> None:
    """Let Python import these files anew, and whatever lies in a package among them."""
    called = {file.name for file in sources.files}  # looking at the paths of some thousand modules would take a second
    loaded = {name: module for name, module in list(sys.modules.items()) if _file_name(module) in called}
    names = {name for name, module in loaded.items() if file_of(module) in sources.files} - {"__main__"}
    for name in list(sys.modules):
        if name in names or any(name.startswith(f"{owner}.") for owner in names):
            del sys.modules[name]
    importlib.invalidate_caches()
    for file in sources.files:
        # Python takes bytecode for fresh by whole seconds and size, and would miss a quick edit.
        with suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(str(file))).unlink()


def _file_name(module: ModuleType) -> str:
    return os.path.basename(getattr(module, "__file__", None) or "")
