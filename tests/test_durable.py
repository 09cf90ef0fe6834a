"""A durable write: at each moment the disk holds the old contents or the new ones, whatever happens then."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.durable import add_line, append_lines, make_home, new_folder, set_aside, watched, write_file
from dspy_toolkit.errors import LedgerError, StoreError
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.reply_cache import use_cache
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.settings import Settings

STEPS = ["create", "write", "sync", "rename", "sync folder"]


class PowerCut:
    """What a disk may hold if the power goes at one of the steps of a write to files of `folder`.

    Of a file whose bytes were not synced nothing, half or all may be there; of names that were not synced, those from
    before or those of now.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self._path = folder, path
        self._names, self._unsynced = self._listing(), set[int]()
        self._last: tuple[str, Path] | None = None
        self.seen: list[bytes | None] = []

    def __call__(self, step: str, path: Path) -> None:
        done, self._last = self._last, (step, path)
        if done is not None:
            if done[0] == "sync":
                self._unsynced.discard(done[1].stat().st_ino)
            if done == ("sync folder", self._folder):
                self._names = self._listing()
        if step == "write":
            self._unsynced.add(path.stat().st_ino)
        for names in (self._names, self._listing()):
            self.seen += self._contents(names.get(self._path.name))

    def _listing(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self._folder.iterdir() if not path.is_dir()}

    def _contents(self, inode: int | None) -> list[bytes | None]:
        if inode is None:
            return [None]
        there = {path.stat().st_ino: path for path in self._folder.iterdir()}
        # A file that has lost its name is the old one, kept open by nobody: it is what `old` says, or never was read.
        data = there[inode].read_bytes() if inode in there else self._old
        return [data[: len(data) // 2], b"", data] if inode in self._unsynced else [data]

    def watch(self, old: bytes | None, write: Callable[[], None]) -> None:
        self._old = old or b""
        with watched(self):
            write()
        self("end", self._path)


contents = st.binary(min_size=1, max_size=40)


@settings(max_examples=15, deadline=None)
@given(st.none() | contents, contents, st.booleans())
def test_a_cut_of_the_power_at_any_step_leaves_the_old_contents_or_the_new(
    old: bytes | None, new: bytes, append: bool
) -> None:
    with TemporaryDirectory() as name:
        folder, path = Path(name), Path(name, "file")
        if old is not None:
            path.write_bytes(old)
        cut = PowerCut(folder, path)
        cut.watch(old, lambda: append_lines(path, new) if append else write_file(path, new))
        whole = path.read_bytes()
        assert set(cut.seen) <= {old, whole}
        assert cut._names == cut._listing()  # what was returned from is on the disk
        if append and old is not None:
            assert whole == old + (b"" if old.endswith(b"\n") else b"\n") + new


def test_the_power_cut_finds_a_write_that_does_not_sync(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    cut = PowerCut(tmp_path, path)

    def hasty() -> None:
        partial = tmp_path / "partial"
        partial.write_bytes(b"new")
        cut("write", partial)
        cut("rename", path)
        partial.rename(path)

    cut.watch(b"old", hasty)
    assert b"" in cut.seen


KILLED_AT_EACH_STEP = """
import os, signal, sys
from itertools import count
from pathlib import Path
from dspy_toolkit.durable import watched, write_file
path = Path(sys.argv[1])
for steps in count():
    write_file(path, b"old")
    left = iter(range(steps))
    child = os.fork()
    if child == 0:
        with watched(lambda step, where: None if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)):
            write_file(path, b"new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(path.read_text(), flush=True)
    if status == 0:
        break
"""


def test_a_kill_at_any_step_leaves_the_old_contents_or_the_new(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_STEP, str(tmp_path / "file")], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["old"] * 4 + ["new"] * 2  # the rename is the moment


def failing_at(step: str) -> Callable[[str, Path], None]:
    def watch(now: str, path: Path) -> None:
        if now == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return watch


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_at_any_step_is_one_line_and_leaves_nothing_half_written(tmp_path: Path, step: str) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with watched(failing_at(step)), pytest.raises(LedgerError, match="Cannot write .*No space left.* Free") as caught:
        write_file(path, b"new", LedgerError)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == (b"new" if step == "sync folder" else b"old")
    assert os.listdir(tmp_path) == ["file"]
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(StoreError, match="Cannot write .*DSPY_TOOLKIT_HOME"):
        write_file(tmp_path / "a" / "file", b"x")


def test_a_new_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(ValueError, match="broken"), new_folder(path) as partial:
        (partial / "config").write_text("half")
        raise ValueError("broken")
    assert os.listdir(tmp_path) == []
    with pytest.raises(StoreError, match="Cannot write"), watched(failing_at("rename")), new_folder(path) as partial:
        (partial / "config").write_text("half")
    assert os.listdir(tmp_path) == []
    with new_folder(path) as partial:
        (partial / "config").write_text("whole")
        assert not path.exists()
    assert (path / "config").read_text() == "whole" and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("write", [lambda path: write_file(path, b"x"), lambda path: filled(path)])
def test_what_a_killed_writer_left_is_removed_after_an_hour(tmp_path: Path, write: Callable[[Path], None]) -> None:
    old, new = f"a.{'0' * 32}.partial", f"a.{'1' * 32}.partial"
    (tmp_path / old).write_text("half")
    (tmp_path / f"folder.{old}").mkdir()
    (tmp_path / f"folder.{old}" / "config").write_text("half")
    for name in (new, "mine.partial"):
        (tmp_path / name).write_text("of somebody who is at work, or not ours")
    for name in (old, f"folder.{old}", "mine.partial"):
        os.utime(tmp_path / name, (time.time() - 3700,) * 2)
    write(tmp_path / "b")
    assert set(os.listdir(tmp_path)) == {"b", new, "mine.partial"}


def filled(path: Path) -> None:
    with new_folder(path) as partial:
        (partial / "config").write_text("whole")


def test_a_damaged_file_is_set_aside_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"damaged")
    set_aside(path, "it is short")
    set_aside(path, "it is short")  # another process was first
    (aside,) = tmp_path.iterdir()
    assert re.fullmatch(r"file\.damaged-\d{8}T\d{6}-[0-9a-f]{6}", aside.name) and aside.read_bytes() == b"damaged"
    (record,) = caplog.records
    assert "it is short" in record.getMessage() and aside.name in record.getMessage()


def test_a_signal_in_the_middle_leaves_no_temporary_file(tmp_path: Path) -> None:
    def interrupt(step: str, path: Path) -> None:
        if step == "sync":
            signal.raise_signal(signal.SIGINT)

    with watched(interrupt), pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_a_home_is_for_its_owner_and_not_for_git(tmp_path: Path) -> None:
    work = tmp_path / "work"
    home = work / "deep" / ".dspy-toolkit"
    for _ in range(2):
        make_home(home)
    assert home.stat().st_mode & 0o777 == 0o700
    write_file(home / "objects" / "rows.parquet", b"rows in clear")
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    seen = subprocess.run(["git", "-C", str(work), "status", "--short"], check=True, capture_output=True)
    assert seen.stdout == b""


def test_a_home_that_others_share_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    make_home(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o775
    assert not list(tmp_path.iterdir())


def _find_model(home: Path) -> None:
    folder = home.parent / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    find_weights(f"mlx/{folder}", home)


def _save_an_object(home: Path) -> None:
    Context.open("router", Settings(home=home)).store.save_json(1)


def _keep_replies(home: Path) -> None:
    import dspy

    before = vars(dspy).get("cache")
    use_cache(Settings(home=home))
    vars(dspy)["cache"] = before


def _start_a_flow(home: Path) -> None:
    from flows.terminal import check_home

    check_home(Settings(home=home))


def _import_flows(home: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    command = [sys.executable, "-c", "import flows"]
    subprocess.run(command, env=clean | {"DSPY_TOOLKIT_HOME": str(home)}, cwd=Path(__file__).parents[1], check=True)


@pytest.mark.parametrize("first", [_find_model, _save_an_object, _keep_replies, _start_a_flow, _import_flows])
def test_whoever_comes_first_makes_the_home(first: Callable[[Path], None], tmp_path: Path) -> None:
    first(tmp_path / "home")
    check_made(tmp_path / "home")


def test_a_first_run_in_mlflow_makes_the_home(empty_mlflow: Path) -> None:
    check_made(empty_mlflow.parent)


def check_made(home: Path) -> None:
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / ".gitignore").read_text() == "*\n"


JSON_LINES = st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2), max_size=4)


@settings(max_examples=30, deadline=None)
@given(JSON_LINES, st.integers(0, 40), st.booleans())
def test_a_line_that_a_cut_left_half_is_taken_away_by_the_next(lines: list[Any], lost: int, ended: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        for line in lines:
            add_line(path, json.dumps(line).encode() + b"\n")
        torn = json.dumps({"the": "last one"}).encode()[: lost + 1]
        with path.open("ab") as file:
            file.write(torn + b"\n" * (ended and torn.endswith(b"}")))
        whole = [{"the": "last one"}] if torn.endswith(b"}") else []
        add_line(path, b'{"new": 1}\n')
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*lines, *whole, {"new": 1}]


def test_a_line_is_added_in_place_and_a_disk_that_refuses_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    add_line(path, b'{"a": 1}\n')
    inode = path.stat().st_ino
    add_line(path, b'{"b": 2}\n')
    assert path.stat().st_ino == inode and path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'

    def full(step: str, _: Path) -> None:
        if step == "sync":
            raise OSError(errno.ENOSPC, "No space left on device")

    with watched(full), pytest.raises(StoreError, match="No space left"):
        add_line(path, b'{"c": 3}\n')
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
