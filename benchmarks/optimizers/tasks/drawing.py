"""Drawing rows from templates: always the same ones for the same seed, and no two texts alike."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.optimizers.tasks import Record
from dspy_toolkit.settings import Settings

PEOPLE = (
    "Mira", "Jonas", "Amara", "Tomas", "Yuki", "Elif", "Pedro", "Ingrid", "Kofi", "Lena", "Rahul", "Sofia", "Anton", "Noor",
    "Hugo", "Wanda", "Farid", "Greta", "Oskar", "Priya",
)  # fmt: skip
DATA = (
    "support tickets", "recipe cards", "court rulings", "field notes", "song lyrics", "bug reports", "patent claims",
    "travel reviews", "lab protocols", "radio transcripts", "insurance letters", "product blurbs", "chess comments",
    "weather bulletins", "museum labels", "job adverts",
)  # fmt: skip
PLACES = (
    "on the office Mac Studio", "on the old M1", "on node seven", "in the night queue", "on the shared laptop",
    "over the weekend", "on the borrowed M3", "before the review", "in the second attempt", "after the update",
)  # fmt: skip


def draw_rows(count: int, seed: int, make: Callable[[random.Random, int], Record], key: str) -> list[Record]:
    """`count` records that differ in the field `key`.

    Args:
        make: given the source of chance and the number of the draw.

    Raises:
        ValueError: the templates do not hold that many different texts.
    """
    draw = random.Random(seed)
    made: dict[str, Record] = {}
    for number in range(20 * count):
        record = make(draw, number)
        made.setdefault(record[key], record)
        if len(made) == count:
            return list(made.values())
    raise ValueError(f"The templates gave {len(made)} different texts in {20 * count} draws, {count} are wanted.")


def seed_of(settings: Settings, task: int) -> int:
    """The seed of a task's rows: another one for every task and for every seed of the search.

    Rows that differ from seed to seed make a task's results independent, which the intervals over seeds rest on.

    Args:
        task: the task's own number, under 1,000.
    """
    return 1_000 * settings.optimize.seed + task
