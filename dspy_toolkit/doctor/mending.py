"""What can be mended without harm, one function each, and mending it. Looking changes nothing.

    home         others may look into it → mode 0700
    cache        a shard of replies whose database is damaged → set aside; its replies are asked for again
    left         temporary files of writers that were killed over an hour ago → removed
    lock         the accelerator's lock is no folder → set aside
    model        the embedded model is not in this environment, or damaged → fetched

Not mended: locks that somebody holds (the operating system gives a dead holder's back), runs that a killed process left open
(the next one finishes or undoes them), settings, projects, and MLflow's database, which holds what cannot be made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.durable import is_left, is_private, set_aside, writing
from dspy_toolkit.errors import ModelNotFound

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


class Repair(NamedTuple):
    """One thing that can be mended."""

    name: str
    """The part that it belongs to: `home`, `cache`, `left`, `lock` or `model`."""
    what: str
    """What is wrong, and what would be done."""
    do: Callable[[], object]
    """Raises a ToolkitError where it cannot be done."""


def repairs(settings: Settings) -> Iterator[Repair]:
    """Look for what can be mended here. Nothing is: a repair's `do` does it.

    Args:
        settings: the home to look into, and the model that is wanted.

    Yields:
        What can be mended, each looked for when it is asked for.
    """
    folder = settings.path()
    if folder.is_dir():
        yield from _home(folder)
        yield from _cache(settings.path("cache"))
        yield from _left(folder)
    yield from _lock()
    yield from _model(settings)


def mend(
    settings: Settings, agreed: Callable[[Repair], bool], mended: Callable[[Repair], object] = lambda _: None
) -> list[Repair]:
    """Mend what can be mended without harm, one after the other.

    Args:
        settings: the home to look into, and the model that is wanted.
        agreed: whether to do it; asked before each.
        mended: told of each once it is done, also where a later one cannot be.

    Returns:
        What was mended, in that order.

    Raises:
        ToolkitError: something could not be mended; what was before it is.
    """
    done: list[Repair] = []
    for repair in repairs(settings):
        if agreed(repair):
            repair.do()
            done.append(repair)
            mended(repair)
    return done


def _home(folder: Path) -> Iterator[Repair]:
    if not is_private(folder) and folder.stat().st_uid == os.getuid():
        what = f"{folder} can be read by others, and holds rows in clear: give it the mode 0700"
        yield Repair("home", what, partial(_make_private, folder))


def _make_private(folder: Path) -> None:
    with writing(folder):
        folder.chmod(0o700)


def _cache(folder: Path) -> Iterator[Repair]:
    from dspy_toolkit.lm.reply_cache import damaged_shards

    for shard, why in damaged_shards(folder).items():
        what = f"{shard} is damaged ({why}): set it aside; its replies are asked for again"
        yield Repair("cache", what, partial(set_aside, shard, why))


def _left(folder: Path) -> Iterator[Repair]:
    # Not below what other programs keep in the home, such as Prefect's storage: names there are theirs.
    places = [folder, *(each for each in folder.iterdir() if each.is_dir() and each.name != "prefect")]
    for place in places:
        for path in sorted(place.rglob("*.partial") if place != folder else place.glob("*.partial")):
            if is_left(path):
                what = f"{path} was left by a writer that was killed: remove it"
                yield Repair("left", what, partial(_remove, path))


def _remove(path: Path) -> None:
    with writing(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lock() -> Iterator[Repair]:
    from dspy_toolkit.lm.models.hardware import inspect_hardware
    from dspy_toolkit.lm.models.lease import lease_path

    path = lease_path(inspect_hardware().device)
    if path.exists() and not path.is_dir() and path.stat().st_uid == os.getuid():
        what = f"the accelerator's lock {path} is no folder, and cannot be had: set it aside"
        yield Repair("lock", what, partial(set_aside, path, "it is no folder"))


def _model(settings: Settings) -> Iterator[Repair]:
    from dspy_toolkit.lm.models.embedded import EMBEDDED
    from dspy_toolkit.lm.models.gguf import fetch_gguf, find_gguf
    from dspy_toolkit.lm.roles import role_model

    wanted = role_model(settings, "lm").model.removeprefix("mlx/").partition("@")[0]
    if wanted != EMBEDDED or (settings.path("models", EMBEDDED) / "origin.json").is_file():
        return
    try:
        find_gguf()
    except ModelNotFound as error:
        yield Repair("model", f"{str(error).partition(' Run ')[0]} Fetch it (98 MB)", fetch_gguf)
