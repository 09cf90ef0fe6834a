"""Processes that are killed, and what the same command makes of what they left."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.drills.conftest import Saw
from tests.drills.forks import Ended, Forks, differences, in_turns
from tests.drills.optimization import KILL, STEPS, TERMINATE

pytestmark = pytest.mark.timeout(3600)

MOMENTS = int(os.environ.get("DRILL_MOMENTS", "190"))


def disturbed(forks: Forks, project: Path, home: Path, undisturbed: Ended, **fault: object) -> Ended:
    """A run with a fault, then the same run again: it comes to the end of one that nothing disturbed."""
    first = forks.run(project, home, **fault)
    again = forks.run(project, home)
    assert again.code == 0, (fault, first, again)
    assert not differences(again.end, undisturbed.end), (fault, first, again)
    return again


@pytest.mark.soak
@pytest.mark.drill(1, "SIGKILL before and after each step")
def test_killed_at_each_step(
    forks: Forks, project: Path, undisturbed: Ended, new_home, tmp_path: Path, saw: Saw
) -> None:
    slowest = 0.0
    for where in [f"{when} {step}" for step in STEPS for when in ("before", "after")]:
        home = new_home(tmp_path / where)
        again = disturbed(forks, project, home, undisturbed, at=where, signal=KILL)
        slowest = max(slowest, again.seconds)
        shutil.rmtree(home)
    saw(f"{2 * len(STEPS)} kills: the same command ended each time as if undisturbed", slowest)


@pytest.mark.soak
@pytest.mark.drill(2, "SIGKILL between promotion and record")
def test_killed_between_promotion_and_record(
    forks: Forks, project: Path, undisturbed: Ended, new_home, tmp_path: Path, saw: Saw
) -> None:
    again = Ended(0, 0, 0, "", 0, None)
    baseline = [f"after {what} of the baseline" for what in ("save_version", "promote")]
    for where in (*baseline, "after save_version", "after promote", "after release", "before record"):
        home = new_home(tmp_path / where)
        again = disturbed(forks, project, home, undisturbed, at=where, signal=KILL)
    saw("the next run recorded the promotion, with one warning; no run was left open", again.seconds)


@pytest.mark.soak
@pytest.mark.drill(3, "SIGTERM during the release")
def test_ended_during_the_release(
    forks: Forks, project: Path, undisturbed: Ended, new_home, tmp_path: Path, saw: Saw
) -> None:
    seconds = 0.0
    inside = ("before save_version", "after save_version", "before promote", "after promote")
    for where in (*(f"{each} of the baseline" for each in inside), *inside, "after release"):
        home = new_home(tmp_path / where)
        first = forks.run(project, home, at=where, signal=TERMINATE)
        assert first.code == 130, (where, first)
        left = forks.run(project, home, look=True).end
        assert left is not None and undisturbed.end is not None
        # Live is what was live before, or what is recorded as promoted.
        assert left.get("champion") in (None, undisturbed.end["replaced"]) or left == undisturbed.end, (where, left)
        assert left == {} or left["recorded"][0] == "FINISHED", (where, left)
        again = forks.run(project, home)
        assert not differences(again.end, undisturbed.end), (where, again)
        seconds = max(seconds, again.seconds)
    saw("code 130; the champion and its record agreed; the same command promoted", seconds)


def at_random(count: int, project: Path, undisturbed: Ended, make: Callable[[Path], Path], folder: Path) -> list[Ended]:
    """Kill at `count` random moments, each in a home of its own; every fourth home is empty."""
    chance = random.Random(200)
    moments = [(number, chance.random()) for number in range(count)]

    def each(forks: Forks, moment: tuple[int, float]) -> Ended:
        number, share = moment
        place = folder / str(number)
        home = place / "home" if number % 4 == 0 else make(place)
        place.mkdir(exist_ok=True)
        # A first run makes MLflow's tables too, in about as long as all else takes.
        after = share * undisturbed.seconds * (2 if number % 4 == 0 else 1)
        again = disturbed(forks, project, home, undisturbed, kill_after=after)
        shutil.rmtree(place)
        return again

    return in_turns(moments, each)


@pytest.mark.system
def test_killed_at_three_random_moments(project: Path, undisturbed: Ended, new_home, tmp_path: Path) -> None:
    assert len(at_random(3, project, undisturbed, new_home, tmp_path)) == 3


@pytest.mark.soak
@pytest.mark.drill(26, "SIGKILL at a random moment, a fake model")
def test_killed_at_random_moments(project: Path, undisturbed: Ended, new_home, tmp_path: Path, saw: Saw) -> None:
    ended = at_random(MOMENTS, project, undisturbed, new_home, tmp_path)
    twice = sum(len(each.end["openings"]) > 1 for each in ended if each.end)
    opened = f"; {twice} times the sealed rows were opened a second time" if twice else ""
    saw(
        f"{len(ended)} kills: the same command came to the same end each time{opened}",
        max(each.seconds for each in ended),
    )
