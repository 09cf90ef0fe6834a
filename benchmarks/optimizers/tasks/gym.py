"""Rows and verifiers of reasoning-gym, whose puzzles are drawn by a seed: fresh sealed rows never run out.

The package is for this benchmark alone, and imports everything that any of its hundred puzzles needs. It is imported
when rows are drawn or an answer is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.optimizers.tasks import Record
from benchmarks.optimizers.tasks.drawing import seed_of
from dspy_toolkit.metrics import Score
from dspy_toolkit.settings import Settings

if TYPE_CHECKING:
    import dspy

PACKAGE = "reasoning_gym"


def missing() -> str | None:
    """Why these tasks cannot run here, with the command that helps; None when they can."""
    try:
        import_module(PACKAGE)
    except ImportError as error:
        return f"reasoning-gym cannot be imported ({error}): .venv/bin/uv pip install --group gym"
    return None


def draw_puzzles(
    dataset: str,
    config: dict[str, Any],
    count: int,
    settings: Settings,
    task: int,
    *,
    read: Callable[[str], Any] = str,
    answers: Sequence[str] = (),
) -> list[Record]:
    """`count` different questions with their answers.

    Args:
        dataset: one of reasoning-gym's.
        config: its configuration, beside size and seed.
        task: the task's own number, as of `seed_of`. Puzzle i of seed s is puzzle 0 of seed s + i, so 1,000 draws are
            the most that leave the rows of two seeds apart.
        read: makes a value of the output's type of an answer.
        answers: puzzles with another answer are left out; none are, where it is empty.

    Raises:
        ValueError: there are fewer.
    """
    puzzles = import_module(PACKAGE).create_dataset(dataset, size=1_000, seed=seed_of(settings, task), **config)
    found: dict[str, Record] = {}
    for number in range(1_000):
        puzzle = puzzles[number]
        if answers and puzzle["answer"] not in answers:
            continue
        found.setdefault(puzzle["question"], {"question": puzzle["question"], "answer": read(puzzle["answer"])})
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"{dataset} gave {len(found)} different questions in 1,000 draws, {count} are wanted.")


def verify(
    dataset: str, example: dspy.Example, prediction: dspy.Prediction, metadata: dict[str, Any] | None = None
) -> Score:
    """1 when the dataset's own verifier gives all its points, else 0: its shares are for reinforcement learning."""
    answer = str(prediction.answer).strip()
    if (
        _verifier(import_module(PACKAGE), dataset)(answer, {"answer": str(example.answer), "metadata": metadata or {}})
        == 1
    ):
        return Score(value=1, feedback="Right.")
    return Score(value=0, feedback=f"Expected {example.answer!r}, got {answer!r}.")


@cache  # making one reads a book
def _verifier(package: ModuleType, dataset: str) -> Callable[[str, Record], float]:
    return package.get_score_answer_fn(dataset)
