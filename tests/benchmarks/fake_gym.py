"""What the benchmark uses of reasoning-gym 0.1.25, on three made-up datasets of the same names and shapes."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from typing import Any

Puzzle = dict[str, Any]


class Puzzles:
    """Puzzle i of seed s is puzzle 0 of seed s + i."""

    def __init__(self, name: str, size: int, seed: int) -> None:
        self.name, self.size, self.seed = name, size, seed

    def __getitem__(self, number: int) -> Puzzle:
        assert number < self.size
        return MAKERS[self.name](random.Random(self.seed + number))


def create_dataset(name: str, *, size: int, seed: int, **config: Any) -> Puzzles:
    return Puzzles(name, size, seed)


def get_score_answer_fn(name: str) -> Callable[[str, Puzzle], float]:
    return number if name == "number_format" else text


def text(answer: str, entry: Puzzle) -> float:
    expected = entry["answer"]
    if answer == expected:
        return 1.0
    return len(expected) / len(answer) if expected in answer else 0.0


def number(answer: str, entry: Puzzle) -> float:
    return float(abs(float(answer) - entry["metadata"]["solution"]) < 1e-2)


def _words(draw: random.Random, count: int) -> Sequence[str]:
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 8))) for _ in range(count)]


def _letters(draw: random.Random) -> Puzzle:
    words = " ".join(_words(draw, 5))
    letter = draw.choice(words.replace(" ", ""))
    return {
        "question": f'How many times does the letter "{letter}" appear in the text: "{words}"?',
        "answer": str(words.count(letter)),
    }


def _largest(draw: random.Random) -> Puzzle:
    numbers = [round(draw.uniform(1_000, 100_000), 3) for _ in range(3)]
    return {"question": f"Pick the largest number: {' '.join(map(str, numbers))}", "answer": str(max(numbers))}


def _relation(draw: random.Random) -> Puzzle:
    one, other, *rest = _words(draw, 8)
    relation = draw.choice(
        ("mother", "father", "son", "daughter", "wife", "husband", "grandmother", "grandfather", "mother-in-law")
    )
    return {"question": f"{' and '.join(rest)} are a family. What is {one} to {other}?", "answer": relation}


MAKERS = {"letter_counting": _letters, "number_format": _largest, "family_relationships": _relation}
