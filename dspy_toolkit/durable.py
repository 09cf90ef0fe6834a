"""Writing files so that a crash, a full disk or a cut of the power leaves the old contents or the new ones.

    temporary file in the same folder → its bytes forced to the disk → renamed over the file → the folder forced to the disk

A reader therefore never sees an empty or a torn file, and what was written when the call returned is still there after the
power was cut. A write that fails leaves the file as it was, and no temporary file where that can be removed. One that a killed
process left is removed by the first process that writes to the same folder an hour later.

Covered: files, lines added to a file (all or none, or one in place), folders made as a whole, setting a damaged file or folder aside. `watched` lets a test
look at the disk before each step, or stop there.

Not covered: two writers at once (`dspy_toolkit.locks`), buckets (`dspy_toolkit.store`), databases, which keep journals of
their own.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dspy_toolkit.errors import StoreError, ToolkitError

log = logging.getLogger(__name__)

Step = Literal["create", "write", "sync", "rename", "sync folder"]
"""What a durable write does to the disk, in this order; `create` also makes folders."""

LEFT_SECONDS = 3600.0
"""After so long nobody is at work on a temporary file: its writer was killed."""
BLOCK = 65_536
"""Bytes that are read at once where the end of a file is looked for."""
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
_swept: set[Path] = set()
"""Folders that this process has looked through."""

_watch: Callable[[Step, Path], None] | None = None


@contextmanager
def watched(watch: Callable[[Step, Path], None]) -> Iterator[None]:
    """Call `watch` before every step of every durable write of this process, with the path that it concerns.

    An OSError that it raises is what the disk would have said; a process that it ends there was killed there.
    """
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


def write_file(path: Path, data: bytes, refusal: type[ToolkitError] = StoreError) -> None:
    """Give `path` the contents `data`, whole or not at all; folders on the way are made.

    Args:
        refusal: what a failure is raised as.

    Raises:
        StoreError: it cannot be written; it is then as it was.
    """
    partial = _beside(path)
    try:
        with writing(path, refusal):
            make_folder(path.parent)
            _sweep(path.parent)
            _step("create", partial)
            with open(partial, "xb", buffering=0) as file:
                _step("write", partial)
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                _sync(file.fileno(), partial)
            _rename(partial, path)
    finally:
        with suppress(OSError):  # a disk that refuses to write may refuse this too; the name says what it is
            partial.unlink(missing_ok=True)


def append_lines(path: Path, lines: bytes, refusal: type[ToolkitError] = StoreError) -> None:
    r"""Add `lines` at the end of `path`, all or none. The caller holds its lock.

    A last line that has lost its line end, as some editors leave it, gets one: it must not run into the first new line.

    Args:
        lines: whole lines, each with its `\n`.
        refusal: what a failure is raised as.

    Raises:
        StoreError: the file cannot be read or written; it is then as it was.
    """
    with writing(path, refusal):
        old = path.read_bytes() if path.exists() else b""
    # The whole file is written anew: appending in place would leave half a batch behind when the power is cut.
    write_file(path, old + (b"\n" if old and not old.endswith(b"\n") else b"") + lines, refusal)


def add_line(path: Path, line: bytes, refusal: type[ToolkitError] = StoreError) -> None:
    r"""Add one JSON line at the end of `path`, in place: what it takes does not grow with the file. The caller holds its lock.

    What a cut of the power can leave is a last line without its end, which was reported to nobody. The next call takes it away
    where it is no JSON, and ends it where it is, as an editor may leave it: so readers pass over a last line that is neither.

    Args:
        line: with its `\n`.
        refusal: what a failure is raised as.

    Raises:
        StoreError: the file cannot be read or written; it is then as it was.
    """
    with writing(path, refusal):
        if not path.exists():
            write_file(path, line, refusal)
            return
        with open(path, "r+b", buffering=0) as file:
            begin, end = _last_line(file)
            size = file.seek(0, os.SEEK_END)
            if begin < size:
                size, line = (size, b"\n" + line) if is_json(end) else (begin, line)
            _step("write", path)
            try:
                file.truncate(size)
                file.seek(size)
                left = memoryview(line)
                while left:
                    left = left[file.write(left) :]
                _sync(file.fileno(), path)
            except BaseException:
                file.truncate(size)
                raise


def is_json(line: bytes) -> bool:
    """Whether a line is whole: no beginning of a JSON object is one."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _last_line(file: io.FileIO) -> tuple[int, bytes]:
    """Where the last line without its end begins, and its bytes; the end of the file and nothing, where all have theirs."""
    size = at = file.seek(0, os.SEEK_END)
    tail = b""
    while at and b"\n" not in tail:
        step = min(at, BLOCK)
        at = file.seek(at - step)
        tail = file.read(step) + tail
    rest = tail[tail.rfind(b"\n") + 1 :]
    return size - len(rest), rest


@contextmanager
def new_folder(path: Path, refusal: type[ToolkitError] = StoreError) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends, and is removed when it fails. `path` must not exist.

    Raises:
        StoreError: it cannot be written; also an OSError from inside the block.
    """
    partial = _beside(path)
    try:
        with writing(path, refusal):
            make_folder(partial)
            _sweep(path.parent)
            yield partial
            for file in sorted(partial.iterdir()):
                with file.open("rb") as opened:
                    _sync(opened.fileno(), file)
            _sync_folder(partial)
            _rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, path: Path, refusal: type[ToolkitError] = StoreError) -> None:
    """Give a file that another library has written whole beside `path` its name, for good.

    Raises:
        StoreError: it cannot be renamed.
    """
    with writing(path, refusal):
        with partial.open("rb") as written:
            _sync(written.fileno(), partial)
        _rename(partial, path)


def make_folder(path: Path) -> None:
    """Make `path` and what is missing above it, for good. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    if missing:
        _step("create", path)
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _sync_folder(folder.parent)


def make_home(path: Path, refusal: type[ToolkitError] = StoreError) -> None:
    """Make the folder that everything is kept in, rows and replies in clear: only its owner may look, and git does not.

    One that is there already and that others may read was made by somebody who wants it so, and is left alone.

    Raises:
        StoreError: it cannot be made.
    """
    ignore = path / ".gitignore"
    with writing(path, refusal):
        if not path.exists():
            make_folder(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
        if is_private(path) and os.access(path, os.W_OK) and not ignore.exists():
            write_file(ignore, b"*\n", refusal)


def is_private(path: Path) -> bool:
    """Whether nobody but the owner of `path` may look into it."""
    return not path.stat().st_mode & 0o077


def is_left(path: Path) -> bool:
    """Whether `path` is a temporary file or folder whose writer was killed. Raises OSError."""
    return _PARTIAL.search(path.name) is not None and time.time() - path.stat().st_mtime > LEFT_SECONDS


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file or folder to `NAME.damaged-TIME-…`, with one warning, so that it can be made again.

    Of several processes that find it damaged the first one renames it.

    Raises:
        StoreError: it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}")
    try:
        with writing(path):
            _rename(path, aside)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise
    log.warning("%s is damaged (%s). It is kept as %s, and made again.", path, why, aside.name)


@contextmanager
def writing(what: Path | str, refusal: type[ToolkitError] = StoreError) -> Iterator[None]:
    """Turn an OSError of the block into one line that says what could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise refusal(
            f"Cannot write {what}: {str(error.strerror or error).rstrip('.')}. "
            "Free some space or make it writable, or set DSPY_TOOLKIT_HOME to a folder that is."
        ) from error


def _beside(path: Path) -> Path:
    # Never one name for two writers: each would rename what the other has half written.
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`, once in this process."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # another process was first, or the folder is not ours to look into
        for left in folder.iterdir():
            if is_left(left):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _rename(path: Path, target: Path) -> None:
    _step("rename", target)
    path.rename(target)
    _sync_folder(target.parent)


def _sync_folder(path: Path) -> None:
    _step("sync folder", path)
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that know no such thing
            raise
    finally:
        os.close(folder)


def _sync(file: int, path: Path) -> None:
    _step("sync", path)
    # On macOS fsync leaves the bytes in the drive's own cache, which a cut of the power empties.
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):  # not on every file system
            fcntl.fcntl(file, full)
            return
    os.fsync(file)


def _step(step: Step, path: Path) -> None:
    if _watch is not None:
        _watch(step, path)
