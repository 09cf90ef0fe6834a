"""An example and an answer, as metrics are given them."""

from __future__ import annotations

import dspy


def example(**labels: object) -> dspy.Example:
    return dspy.Example(text="x", **labels).with_inputs("text")


def answer(**fields: object) -> dspy.Prediction:
    return dspy.Prediction(**fields)
