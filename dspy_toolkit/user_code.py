"""A user's own code: importing it from where it lies, and the text that stands for it in a fingerprint.

Covered: one file, imported under a name made from its path, so that two files called `metric.py` never meet; a module
or package of a given folder; the text of a function or class together with the files it imports from beside it.
A file that changed since it was imported is imported again.

Not covered: the modules that such a file imports. Python imports them under their plain names, once per process, from
the file's folder, which goes to the end of `sys.path`. Their text is in the fingerprint; a change to them takes effect
in the next process.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dspy_toolkit.errors import ProjectError, ToolkitError, nearest

PREFIX = "dspy_toolkit_user_"
_LIBRARY = Path(__file__).resolve().parent
_loaded: dict[str, str] = {}
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
        source = path.read_bytes()
        sha256 = hashlib.sha256(source).hexdigest()
        if name in sys.modules and _loaded.get(name) == sha256:
            return sys.modules[name]
        places = [str(owner)] if owner != path else None
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
        if spec is None:
            raise ProjectError(f"{path} is not a Python file. Name one that ends in .py.")
        make_importable(owner.parent)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            # Not the loader: its bytecode cache, judged by whole seconds and size, would miss a quick edit.
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 the user's own file
        except (Exception, SystemExit) as error:  # isolation boundary: a user's file may raise anything
            del sys.modules[name]
            raise _failure(f"{path.name} cannot be imported", error) from error
        _loaded[name] = sha256
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
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(f"module {_plain(name)} cannot be imported", error) from error
        beside = {path.stem for path in folder.glob("*.py")} if folder and folder.is_dir() else set()
        where = f" in {folder} or among the installed packages" if folder else " among the installed packages"
        raise ProjectError(f"There is no module {_plain(name)}{where}.{nearest(_plain(name), beside)}") from None
    except (Exception, SystemExit) as error:  # isolation boundary: a user's module may raise anything
        raise _failure(f"module {_plain(name)} cannot be imported", error) from error


def missing_file(path: Path) -> str:
    """Say that there is no file at `path`, with the nearest names of its folder."""
    if not path.parent.is_dir():
        return f"There is no file {path}: the folder {path.parent} does not exist. Correct the path."
    # Only the like ones: a folder may hold thousands.
    close = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"There is no file {path}.{nearest(path.name, close)} Correct the path."


def explain(error: BaseException) -> str:
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
        return type(error)(f"{what}: {explain(error)}")
    return ProjectError(f"{what}: {explain(error)}. Correct it and run again.")


def is_user_code(path: Path) -> bool:
    """Whether a file is neither Python's, nor an installed package's, nor this library's own.

    The built-in projects count as a user's: they use the library as an outside project would.
    """
    path = path.resolve()
    if path.is_relative_to(_LIBRARY):
        return path.is_relative_to(_LIBRARY / "projects")
    paths = sysconfig.get_paths()
    return not any(path.is_relative_to(Path(paths[key]).resolve()) for key in ("stdlib", "purelib", "platlib"))


def text_of(thing: Callable[..., Any]) -> str:
    """A text that changes when the code of a function, class or callable object does, the same on every machine.

    A user's code: the text of its module's files (`files_of`). An installed package's: its qualified name and source.
    """
    if isinstance(thing, functools.partial):
        return f"{text_of(thing.func)}\n{_settled([thing.args, thing.keywords])}"
    if not (inspect.isroutine(thing) or isinstance(thing, type)):
        return f"{text_of(type(thing))}\n{_settled(getattr(thing, '__dict__', {}))}"
    if inspect.isfunction(thing):
        thing = inspect.unwrap(thing)
    name = thing.__qualname__
    module = sys.modules.get(thing.__module__ or "")
    file = getattr(module, "__file__", None)
    if module is not None and file and is_user_code(Path(file)):
        return f"{name}\n{text_of_module(module)}"
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        code = getattr(thing, "__code__", None)
        source = _code_text(code) if code else ""
    return f"{thing.__module__}.{name}\n{source}"


def text_of_module(module: ModuleType) -> str:
    """The text of a module's files (`files_of`), each headed by its name; empty for one that has no file."""
    file = getattr(module, "__file__", None)
    texts = files_of(Path(file), module.__name__) if file else {}
    return "\n".join(f"# {path}\n{texts[path]}" for path in sorted(texts))


def files_of(path: Path, module_name: str = "") -> dict[str, str]:
    """The text of a module's file and of the user's files it imports, each under its path from the import root.

    Args:
        path: the module's file; for an `__init__.py`, every `.py` of its folder is taken.
        module_name: its dotted name, from which the import root follows; the file's own folder by default.
    """
    path = path.resolve()
    package = path.name == "__init__.py"
    root = path.parents[module_name.count(".") + package]
    waiting = sorted(path.parent.rglob("*.py")) if package else [path]
    found: dict[str, str] = {}
    while waiting:
        file = waiting.pop()
        name = file.relative_to(root).as_posix()
        if name not in found:
            found[name] = importlib.util.decode_source(file.read_bytes())
            waiting.extend(_imported(file, found[name], root))
    return found


def _imported(file: Path, text: str, root: Path) -> Iterator[Path]:
    """The user's files under `root` that the source `text` of `file` imports."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(root, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else root
            stem = node.module.split(".") if node.module else []
            names = [(base, [*stem, alias.name]) for alias in node.names]
        else:
            continue
        for base, parts in names:
            for length in range(1, len(parts) + 1):
                owner = base.joinpath(*parts[:length])
                for candidate in (owner.with_name(f"{owner.name}.py"), owner / "__init__.py"):
                    if candidate.is_file() and candidate.is_relative_to(root) and is_user_code(candidate):
                        yield candidate


def make_importable(folder: Path) -> None:
    """Let plain imports find the modules of `folder`."""
    # At the end, so that a user's file never stands before an installed package of the same name.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _plain(name: str) -> str:
    """A module's name as its user wrote it."""
    if not name.startswith(PREFIX):
        return name
    first, dot, rest = name.removeprefix(PREFIX).partition(".")
    return first.rpartition("_")[0] + dot + rest


def _settled(value: Any) -> str:
    """JSON of bound arguments or attributes; what JSON cannot hold is named by its code or its type."""
    return json.dumps(
        value,
        sort_keys=True,
        default=lambda item: text_of(item) if callable(item) else f"{type(item).__module__}.{type(item).__qualname__}",
    )


def _code_text(code: CodeType) -> str:
    # A set among the constants is printed in an order that differs from process to process.
    constants = [
        _code_text(item)
        if isinstance(item, CodeType)
        else repr(sorted(map(repr, item)) if isinstance(item, frozenset) else item)
        for item in code.co_consts
    ]
    return json.dumps([code.co_code.hex(), code.co_names, constants])
