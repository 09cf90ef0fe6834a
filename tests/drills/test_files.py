"""Files of a home that are damaged, and disks that refuse to write."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dspy_toolkit.datasets.placements import recall
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.run import Request
from dspy_toolkit.settings import Settings
from tests.drills.conftest import Saw
from tests.drills.forks import Ended, Forks, differences, in_turns
from tests.drills.optimization import NO_SPACE, make_writable

pytestmark = pytest.mark.timeout(3600)

NOBODY = 65534


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def objects(home: Path) -> list[Path]:
    return sorted(path for path in (home / "objects").rglob("*") if path.is_file() and ".damaged" not in path.name)


def warnings(ended: Ended) -> list[str]:
    return [line for line in ended.said.splitlines() if line.startswith("WARNING ")]


@pytest.mark.drill(7, "an object of the store is empty")
def test_an_empty_object(home: Settings, project: Path, caplog: pytest.LogCaptureFixture, saw: Saw) -> None:
    made_again(empty, home, project, caplog, saw)


@pytest.mark.drill(8, "a bit of an object has flipped")
def test_a_flipped_bit(home: Settings, project: Path, caplog: pytest.LogCaptureFixture, saw: Saw) -> None:
    made_again(flip_a_bit, home, project, caplog, saw)


def made_again(
    damage: Callable[[Path], None], home: Settings, project: Path, caplog: pytest.LogCaptureFixture, saw: Saw
) -> None:
    context = Context.open(str(project), home)
    data = resolve(context, Request(location=str(project))).data
    dataset = prepare(context, data)
    whole = {path: path.read_bytes() for path in objects(home.path())}
    started = time.monotonic()
    for path, content in whole.items():
        damage(path)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert prepare(context, data) == dataset
        assert path.read_bytes() == content
        assert [record.getMessage() for record in caplog.records if str(path) in record.getMessage()], path
        assert len(caplog.records) == 1, caplog.text
    saw(f"each of {len(whole)} set aside with one warning, and made again", (time.monotonic() - started) / len(whole))


@pytest.mark.soak
@pytest.mark.drill(9, "every shard of the cache of replies is damaged")
def test_damaged_shards(forks: Forks, project: Path, undisturbed: Ended, new_home, tmp_path: Path, saw: Saw) -> None:
    home = new_home(tmp_path)
    first = forks.run(project, home, at="before release", signal=9)
    assert first.signal == 9, first
    shards = sorted((home / "cache").glob("*/cache.db"))
    assert shards
    for shard in shards:
        shard.write_bytes(os.urandom(4096) + shard.read_bytes()[4096:])
        for beside in shard.parent.glob("cache.db-*"):  # what was written last may be whole there
            beside.unlink()
    shutil.rmtree(home / "steps")  # so that the model is asked again
    again = forks.run(project, home)
    assert again.code == 0, again
    assert again.end is not None and undisturbed.end is not None
    assert again.end["champion"] == undisturbed.end["champion"]
    assert len([line for line in warnings(again) if "is damaged" in line]) == len(shards), again
    saw(f"{len(shards)} set aside, a warning each; the replies were asked for again", again.seconds)


@pytest.fixture
def placed(home: Settings, project: Path) -> tuple[Context, Path]:
    context = Context.open(str(project), home)
    prepare(context, resolve(context, Request(location=str(project))).data)
    return context, home.path("splits", "questions.jsonl")


@pytest.mark.drill(11, "the placements of rows lost their final line end")
def test_placements_without_a_final_line_end(placed: tuple[Context, Path], tmp_path: Path, saw: Saw) -> None:
    context, path = placed
    before = recall(path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    longer = tmp_path / "longer"
    shutil.copytree(Path(context.project.data_path).parent, longer)
    with (longer / "questions.csv").open("a") as rows:
        rows.write("Who has met Euler at last?,person\n")
    location = str(longer / "questions.toml")
    started = time.monotonic()
    more = Context.open(location, context.settings)
    prepare(more, resolve(more, Request(location=location)).data)
    seconds = time.monotonic() - started
    after = recall(path)
    assert after[: len(before)] == before and len(after) == len(before) + 1
    saw("readable; a new row got a line of its own", seconds)


@pytest.mark.drill(12, "the last placement of a row is torn")
def test_torn_placements(placed: tuple[Context, Path], saw: Saw) -> None:
    context, path = placed
    before = recall(path)
    backup = path.with_name(f"{path.name}.backup")
    shutil.copy(path, backup)  # as the next batch would leave it
    path.write_bytes(path.read_bytes()[:-20])
    data = resolve(context, Request(location=context.project.location)).data
    with pytest.raises(DatasetError, match=f"line {len(before)} cannot be read.*{re.escape(str(backup))}") as caught:
        prepare(context, data)
    assert "\n" not in str(caught.value)
    started = time.monotonic()
    shutil.copy(backup, path)  # what it says
    prepare(context, data)
    assert recall(path) == before
    saw(
        "one line that names the line and the backup; with the backup all rows kept their splits",
        time.monotonic() - started,
    )


@pytest.mark.soak
@pytest.mark.drill(13, "the power is cut at any step of any write of a run")
def test_the_power_is_cut(forks: Forks, project: Path, undisturbed: Ended, tmp_path: Path, saw: Saw) -> None:
    ended = forks.run(project, tmp_path / "home", power=True)
    assert not differences(ended.end, undisturbed.end), ended
    found = re.search(r"POWER (\d+) writes, torn \[\], lost \[\]$", ended.said)
    assert found is not None and int(found[1]) > 10, ended.said
    saw(f"{found[1]} writes, {ended.writes} steps: the old contents or the new at each, never an empty file", None)


@pytest.mark.soak
@pytest.mark.drill(14, "the disk is full at the N-th step of a write, for every N")
def test_the_disk_is_full(project: Path, undisturbed: Ended, new_home, tmp_path: Path, saw: Saw) -> None:
    def each(forks: Forks, number: int) -> Ended:
        home = new_home(tmp_path / str(number))
        first = forks.run(project, home, write=number, errno=NO_SPACE)
        if first.code:  # some writes, such as remembered hashes, are not worth a run
            check_refused(first)
        assert not list(home.rglob("*.partial")), number
        again = forks.run(project, home)
        assert again.code == 0 and not differences(again.end, undisturbed.end), (number, first, again)
        shutil.rmtree(home.parent)
        return again

    ended = in_turns(list(range(undisturbed.writes)), each)
    saw(
        f"{len(ended)} times one line; the same command ended each time as if undisturbed",
        max(e.seconds for e in ended),
    )


def check_refused(ended: Ended) -> None:
    """One line says what could not be written, and what to do."""
    lines = [line for line in ended.said.splitlines() if not line.startswith("WARNING ")]
    assert ended.code == 1 and len(lines) == 1 and lines[0].startswith("Error: "), ended


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.soak
@pytest.mark.drill(15, "the home becomes read-only in the middle of a run")
def test_a_home_that_becomes_readonly(
    forks: Forks, undisturbed: Ended, project: Path, new_home, open_folder: Path, saw: Saw
) -> None:
    shutil.copytree(project.parent, open_folder / "project")
    user = {"user": NOBODY} if os.geteuid() == 0 else {}  # nothing is read-only for root
    slowest = 0.0
    for where in ("before compile", "before compare", "before release", "before record"):
        home = new_home(open_folder / where)
        if user:
            for path in (open_folder, *open_folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        where_from = open_folder / "project" / project.name
        first = forks.run(where_from, home, at=where, readonly=str(home), **user)
        check_refused(first)
        make_writable(home)
        left = forks.run(where_from, home, look=True, **user).end
        assert left is not None and undisturbed.end is not None
        assert left["champion"] in (undisturbed.end["replaced"], undisturbed.end["champion"]), (where, left)
        again = forks.run(where_from, home, **user)
        assert again.code == 0 and again.end is not None, (where, again)
        assert again.end["champion"] == undisturbed.end["champion"] and again.end["left running"] == 0, (where, again)
        slowest = max(slowest, again.seconds)
    saw("one line, and the champion was as before; writable again, the same command promoted", slowest)
