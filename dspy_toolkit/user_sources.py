"""The text that stands for a user's code in a fingerprint, the same on every machine.

Covered: the text of a function or class together with that of the user's files it imports (those beside it, and those of
an editable install) and with the versions of the installed packages it imports.

Not covered: what is imported by a name that the program makes, and what code reads: such files are declared in a
project's `files`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from dspy_toolkit.errors import ProjectError

PREFIX = "dspy_toolkit_user_"
"""Of the name that a file is imported under (`user_code.import_file`)."""
imported_as: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()
"""Module → the text of its files when it was imported."""
_LIBRARY = Path(__file__).resolve().parent


def is_user_code(path: Path) -> bool:
    """Whether a file is neither Python's, nor an installed package's, nor this library's own.

    The built-in projects count as a user's: they use the library as an outside project would.
    """
    path = path.resolve()
    if path.is_relative_to(_LIBRARY):
        return path.is_relative_to(_LIBRARY / "projects")
    return not any(path.is_relative_to(folder) for folder in _installed(tuple(sys.path)))


@functools.cache
def _installed(path: tuple[str, ...]) -> tuple[Path, ...]:
    """Where Python's own modules and the installed packages are.

    Packages also lie in a user's own site folder, a distribution's, and one that `pip install --target` filled: each holds
    what an installer notes of its packages. An editable install's note lies elsewhere than its code.
    """
    own = (sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib"))
    filled = (folder for folder in path if folder and any(Path(folder).glob("*.dist-info")))
    return tuple({Path(folder).resolve() for folder in (*own, *filled)})


def text_of(thing: Callable[..., Any]) -> str:
    """A text that changes when the code of a function, class or callable object does, the same on every machine.

    A user's code: the text of its module (`text_of_module`). An installed package's: its qualified name and source.
    """
    if isinstance(thing, functools.partial):
        return f"{text_of(thing.func)}\n{_settled([thing.args, thing.keywords])}"
    if not (inspect.isroutine(thing) or isinstance(thing, type)):
        return f"{text_of(type(thing))}\n{_settled(getattr(thing, '__dict__', {}))}"
    if inspect.isfunction(thing):
        thing = inspect.unwrap(thing)
    name = thing.__qualname__
    module = sys.modules.get(thing.__module__ or "")
    if module is not None and (file := file_of(module)) is not None and is_user_code(file):
        return f"{name}\n{text_of_module(module)}"
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        code = getattr(thing, "__code__", None)
        source = _code_text(code) if code else ""
    return f"{thing.__module__}.{name}\n{source}"


def text_of_module(module: ModuleType) -> str:
    """The text of a module's files and packages (`sources_of`); empty for one that has no file.

    Raises:
        ProjectError: one of them changed since the module was imported, so that the text is not of what would run.
    """
    if (file := file_of(module)) is None:
        return ""
    text = sources_of(file, module.__name__).text
    if imported_as.setdefault(module, text) != text:
        raise ProjectError(
            f"{plain_name(module.__name__)} has changed since this process imported it. Run it again in a new one."
        )
    return text


class Sources(NamedTuple):
    """What a user's module is made of."""

    files: dict[Path, str]
    """Its own file and the user's files that it imports, directly or not: path → text."""
    names: dict[str, Path]
    """Dotted name → path of those that it imports."""
    text: str
    """All that, each file under its path from its import root, and the versions of the installed packages they import."""


def sources_of(path: Path, module_name: str = "") -> Sources:
    """What the module in the file `path` is made of.

    Args:
        path: the module's file; for an `__init__.py`, every `.py` of its folder is taken.
        module_name: its dotted name, from which the import root follows; the file's own folder by default.
    """
    path = path.resolve()
    package = path.name == "__init__.py"
    root = path.parents[module_name.count(".") + package]
    waiting = [(file, root) for file in (sorted(path.parent.rglob("*.py")) if package else [path])]
    above = (path.parents[up] / "__init__.py" for up in range(package, module_name.count(".") + package))
    waiting += [(file, root) for file in above if file.is_file() and is_user_code(file)]
    files: dict[Path, str] = {}
    names: dict[str, Path] = {}
    # One that is no user's code is an installed package's project.
    said = set() if is_user_code(path) else {_version_line(module_name.partition(".")[0])}
    while waiting:
        file, root = waiting.pop()
        if file in files:
            continue
        files[file] = text = importlib.util.decode_source(file.read_bytes())
        name = file.relative_to(root).as_posix()
        said.add(f"# {name}\n{text}")
        names[name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = file
        for level, parts in _imports(text):
            base = file.parents[level - 1] if 0 < level <= len(file.parents) else root
            if beside := [found for found in _candidates(base, parts) if found.is_relative_to(root)]:
                waiting.extend((found, root) for found in beside)
            elif level == 0 and (origin := _origin(parts[0])) is not None:
                if is_user_code(origin):  # an editable install, or a folder on the path
                    base = origin.parents[origin.name == "__init__.py"]
                    waiting.extend((found, base) for found in _candidates(base, parts))
                else:
                    said.add(_version_line(parts[0]))
    return Sources(files, {name: file for name, file in names.items() if file != path}, "\n".join(sorted(said)))


@functools.lru_cache(maxsize=1024)
def _imports(text: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """(level, dotted name) of all that a source text imports, also inside functions; level 0 is from an import root."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ()
    found: set[tuple[int, tuple[str, ...]]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update((0, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = node.module.split(".") if node.module else []
            found.update((node.level, (*stem, alias.name)) for alias in node.names)
    return tuple(sorted(found))


def _candidates(base: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """The user's files under `base` that are run when a dotted name is imported."""
    for length in range(1, len(parts) + 1):
        owner = base.joinpath(*parts[:length])
        for file in (owner.with_name(f"{owner.name}.py"), owner / "__init__.py"):
            if file.is_file() and is_user_code(file):
                yield file.resolve()


def _origin(name: str) -> Path | None:
    """The file of an importable module that is not Python's own; nothing is imported."""
    if name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module that was made by hand, or a broken finder
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


@functools.cache
def _version_line(name: str) -> str:
    """The installed package that is imported as `name`, and its version where something tells it."""
    try:
        return f"# {name} {version(name)}"
    except PackageNotFoundError:
        # Every package's list of files is read, which takes half a second: for names like `yaml` and `sklearn` alone.
        owners = sorted(set(packages_distributions().get(name, ())))
        return f"# {name} {' '.join(f'{owner} {version(owner)}' for owner in owners)}"


def file_of(module: ModuleType) -> Path | None:
    """The source file of a module, if it has one."""
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and file.endswith(".py") else None


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


def plain_name(name: str) -> str:
    """A module's name as its user wrote it."""
    if not name.startswith(PREFIX):
        return name
    first, dot, rest = name.removeprefix(PREFIX).partition(".")
    return first.rpartition("_")[0] + dot + rest
