"""What the evaluations of these tests are made of."""

from __future__ import annotations

from typing import Any

import dspy
import pandas as pd
from dspy.utils import DummyLM

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.lm.meter import Meter

SPEC = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("label",))


class ScriptedLM(DummyLM):
    """Answers from a table, and meters like the real one. A text that is not in the table gets an unreadable reply."""

    def __init__(self, answers: dict[str, dict[str, Any]], *, truncated: bool = False) -> None:
        super().__init__(answers)
        self.meter, self.truncated = Meter(), truncated

    def metered(self, limit: int | None = None) -> ScriptedLM:
        lm = self.copy()
        lm.meter = Meter(limit)
        return lm

    def __call__(self, prompt=None, *, messages=None, **kwargs):
        self.meter.charge()
        reply = super().__call__(prompt, messages=messages, **kwargs)
        self.meter.record(cached=False, prompt_tokens=7, completion_tokens=3, truncated=self.truncated)
        return reply


class Calling(dspy.Module):
    """A program that calls `answer(text)` and leaves the language model alone."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, text):
        return dspy.Prediction(label=self.answer(text))


def rows(*labels: str) -> pd.DataFrame:
    count = range(len(labels))
    return pd.DataFrame(
        {
            "text": [f"text {i:03}" for i in count],
            "label": list(labels),
            "_row": [f"row{i}" for i in count],
            "_group": [f"group{i}" for i in count],
        }
    )
