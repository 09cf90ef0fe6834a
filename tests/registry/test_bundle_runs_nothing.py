"""Whatever names and values a bundle holds under hashes that are right, taking it in runs nothing of it and writes nowhere else."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.neighbors import NeighborRow, NeighborRows
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import save_version
from dspy_toolkit.registry.bundle import read_bundle
from dspy_toolkit.registry.exports import export_bundle
from dspy_toolkit.registry.importing import import_program
from dspy_toolkit.registry.manifest import Manifest
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Store, canonical_json
from dspy_toolkit.tracking import runs as tracking
from tests.registry.test_adapters import adapter_in
from tests.registry.test_bundle import rewritten

CANARY = "canary_of_the_bundle"
"""Stands in each text that could become code, a module or a file: what has it comes out of the bundle."""
PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_watch: Watch | None = None


class Watch:
    """What this thread, and those that it starts, do that a bundle may not make them do."""

    def __init__(self, *folders: Path) -> None:
        self.folders = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
        self.seen: list[str] = []
        self.others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() in self.others:
            return
        if event in PROCESSES or (event in ("compile", "import", "exec", "pickle.find_class") and _told(arguments)):
            self.seen.append(f"{event} {arguments!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & WRITES:
            self._written(event, arguments[0])
        elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
            self._written(event, arguments[0 if event == "os.mkdir" else 1])

    def _written(self, event: str, path: str | bytes) -> None:
        where = os.path.realpath(os.fsdecode(path))
        if where != os.devnull and not f"{where}{os.sep}".startswith(self.folders):
            self.seen.append(f"{event} {where}")


def _told(arguments: tuple[Any, ...]) -> bool:
    """Whether what is compiled, imported or run comes of the bundle."""
    code = arguments[0]
    parts = (code.co_filename, code.co_names, code.co_consts) if hasattr(code, "co_consts") else arguments
    return CANARY in repr(parts)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is not None:
        _watch.hear(event, arguments)


@pytest.fixture(scope="module")
def hook() -> None:
    """Python has no way to take a hook away: outside `watching` this one does nothing."""
    sys.addaudithook(_hook)


@contextmanager
def watching(*folders: Path) -> Iterator[Watch]:
    """Listen while the block runs. Writing below `folders` is allowed."""
    global _watch
    _watch = watch = Watch(*folders)
    try:
        yield watch
    finally:
        _watch = None


@pytest.fixture
def whole(home: Settings, questions: Path, tmp_path: Path) -> Path:
    """A bundle with everything that one may hold: demonstrations, levers, an adapter, rows."""
    program = load_project(str(questions)).build()
    rows = NeighborRows(rows=(NeighborRow(values={"text": "Who?", "label": "person"}, tokens=3),))
    near = {"rows": Store(home.objects).save_json(rows).sha256, "of": 1, "count": 1, "tokens": 100}
    (predictor,) = program.predictors()
    pull(predictor, format="plain", adapter=adapter_in(home), neighbors=near)
    predictor.demos = [{"augmented": True, "text": "Who wrote Emma?", "label": "person"}]
    manifest = Manifest(
        project="questions", optimizer="knn", model="mlx/tiny@01234567", metric="exact_match", parent=3,
        signature_fields={name: str(kind) for name, kind in fields_of(program).items()},
        signature_sha256=signature_hash(program), reports={"comparison": {"delta": 0.1}},
    )  # fmt: skip
    save_version(home, "questions", state_of(program), manifest, tracking.open_run(home, "questions", "optimize"))
    export_bundle(home, "questions@1", tmp_path / "whole.bundle")
    return tmp_path / "whole.bundle"


def values(trap: Path) -> list[Any]:
    """What somebody would write who wants code to run or a file to be written."""
    return [
        f"{trap}:project", str(trap), trap.stem, f"{trap.stem}:project", f"../../{CANARY}", f"/{CANARY}", f"{CANARY}\x00",
        f"__import__('{CANARY}')", f"import {CANARY}", f"typing.Literal[__import__('{CANARY}')]", f"{{{{{CANARY}}}}}",
        f"$(touch {CANARY})", f"; touch {CANARY}", f"!!python/object/apply:os.system ['touch {CANARY}']",
        {"model": f"openai/{CANARY}", "api_base": f"http://{CANARY}"}, {"__class__": CANARY}, {"py/object": f"{CANARY}.X"},
        [CANARY], {CANARY: [{CANARY: {}}]}, "forward", "__class__", "", None, True, -1, 2**80, [], {}, [[[]]],
    ]  # fmt: skip


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below the top of a tree of JSON."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def mutate(tree: Any, data: Any, odd: list[Any]) -> None:
    """Replace one value of a tree, call it something else, or put one beside it."""
    *above, key = data.draw(st.sampled_from(list(places(tree))))
    for step in above:
        tree = tree[step]
    kind = data.draw(st.sampled_from(["fit", "fit", "fit", "replace", "rename", "add"]))
    # What is of the same kind gets past more of the checks.
    chosen = [value for value in odd if kind != "fit" or type(value) is type(tree[key])] or odd
    value = copy.deepcopy(data.draw(st.sampled_from(chosen)))
    if isinstance(tree, list) or kind in ("fit", "replace"):
        tree[key] = value
    else:
        tree[str(value)] = tree.pop(key) if kind == "rename" else value


@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_bundle_with_odd_names_and_values_is_taken_as_data_or_refused(
    hook: None, whole: Path, other: Settings, questions: Path, tmp_path: Path, data: Any
) -> None:  # fmt: skip
    trap, sprung = tmp_path / f"{CANARY}.py", tmp_path / "sprung"
    trap.write_text(f"open({str(sprung)!r}, 'w')\n")
    found = read_bundle(whole)
    about = found.manifest.model_dump(mode="json")
    for _ in range(data.draw(st.integers(1, 2))):
        mutate(data.draw(st.sampled_from([found.state, about])), data, values(trap))
    program = canonical_json(found.state)
    about["program_sha256"] = hashlib.sha256(program).hexdigest()
    changes = {"program.json": program, "manifest.json": canonical_json(about)}
    made = rewritten(whole, changes, index={"project": about.get("project")})
    named = data.draw(st.sampled_from([str(questions), ""]))
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, watching(other.path(), scratch) as watch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        patch.setattr(sys, "dont_write_bytecode", True)
        try:
            took = import_program(other, made, named)
            load_program(other, f"{took.project}@{took.version}", str(questions))
        except ToolkitError:
            pass
    assert watch.seen == []
    assert not sprung.exists() and list(scratch.iterdir()) == []


def test_the_watch_sees_code_modules_processes_and_files(hook: None, tmp_path: Path) -> None:
    home, trap = tmp_path / "home", tmp_path / f"{CANARY}.py"
    home.mkdir()
    trap.write_text("")
    with pytest.MonkeyPatch.context() as patch, watching(home) as watch:
        patch.syspath_prepend(str(tmp_path))
        (home / "allowed").write_text("")
        __import__(trap.stem)
        compile(f"{CANARY} = 1", "a text", "exec")
        exec(trap.read_bytes().decode() + f"x = '{CANARY}'", {})
        subprocess.run(["true"], check=True)
        os.system("true")
        (tmp_path / "beside").write_text("")
        (home / "allowed").rename(tmp_path / "away")
    sys.modules.pop(trap.stem)
    seen = {each.split()[0] for each in watch.seen}
    assert {"import", "compile", "exec", "subprocess.Popen", "os.system", "open", "os.rename"} <= seen
    assert not any("allowed" in each for each in watch.seen)
    before = len(watch.seen)
    os.system("true")
    assert len(watch.seen) == before
