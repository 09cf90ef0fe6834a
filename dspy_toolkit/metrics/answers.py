"""Metrics that compare texts and numbers with the outputs of an example.

Each takes all outputs of the example, or those that `fields` names, and says of every wrong output what was
expected and what the answer was. Options are given with `with_options(token_f1, fields=["answer"])`, or in a project's
table.

Not covered: numbers in words, decimal commas, units (`3 km` is 3), synonyms and paraphrases (see `judge`).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dspy_toolkit.errors import MetricError
from dspy_toolkit.metrics.fields import (
    RIGHT,
    as_json,
    comparable,
    compare_fields,
    listed,
    missing,
    outputs_of,
    plain,
    unlike,
)
from dspy_toolkit.metrics.scores import Score

if TYPE_CHECKING:
    import dspy

_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Signs of scripts that are written without spaces."""
# A number with its points and commas, one such sign, or a word.
_TOKEN = re.compile(rf"\d+(?:[.,]\d+)*|[{_UNSPACED}]|[^\W{_UNSPACED}]+")
# A minus after a letter or digit is a hyphen: the last number of "2024-05" is 5.
_NUMBER = re.compile(
    r"(?:(?<!\w)[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][-+]?\d+)?"
)


def exact_match(example: dspy.Example, prediction: dspy.Prediction, *, fields: tuple[str, ...] = ()) -> Score:
    """1 when every output of `example` is answered exactly, else 0.

    Strings are compared without case and outer spaces, enum members by their value, anything else with `==`.

    Args:
        fields: the outputs that count; all of them when empty.

    Raises:
        MetricError: `example` has no output, or not one of `fields`.
    """
    wrong = []
    for name, expected in outputs_of(example, fields).items():
        if name not in prediction:
            wrong.append(missing(name, expected))
        elif comparable(prediction[name]) != comparable(expected):
            wrong.append(unlike(name, expected, prediction[name]))
    return Score(value=0, feedback=" ".join(wrong)) if wrong else Score(value=1, feedback=RIGHT)


def token_f1(example: dspy.Example, prediction: dspy.Prediction, *, fields: tuple[str, ...] = ()) -> Score:
    """How many words answer and expected text share: the mean over the outputs of F1 of precision and recall.

    F1 over the multiset of words, as in SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250), but with articles counted,
    since the text may be of any language. Words are compared without case and punctuation; a number with its points and
    commas is one word; of Chinese and Japanese each sign is one. Where neither text has a word, the score is that of
    exact_match.

    Args:
        fields: the outputs that count; all of them when empty.

    Raises:
        MetricError: `example` has no output, or not one of `fields`.
    """
    return compare_fields(example, prediction, fields, _compare_tokens)


def numeric_closeness(
    example: dspy.Example,
    prediction: dspy.Prediction,
    *,
    fields: tuple[str, ...] = (),
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0,
    absolute: Annotated[float, Field(ge=0)] = 0.0,
    zero_at: Annotated[float, Field(ge=0, le=1)] = 1.0,
) -> Score:
    """How close numbers are to the expected ones: the mean over the outputs.

    With the relative difference r = |a - b| / max(|a|, |b|), which is the same both ways: 1 up to `tolerance`, 0 from
    `zero_at`, and a straight line between. Half and twice the expected number have r = 0.5, another sign has r above 1.
    Of a text the last number counts, commas between thousands allowed; an answer without a number scores 0.

    Args:
        fields: the outputs that count; all of them when empty.
        tolerance: the relative difference that still scores 1, in [0, 1].
        absolute: the absolute difference that still scores 1, in the numbers' own unit; 0 or more.
        zero_at: the relative difference from which the score is 0, in [0, 1]. At or below `tolerance`, an
            answer is right or wrong and nothing between.

    Raises:
        MetricError: `example` has no output, not one of `fields`, or one that holds no number.
    """

    def compare(name: str, expected: Any, got: Any) -> tuple[float, str]:
        wanted, came = number_of(expected), number_of(got)
        if wanted is None:
            raise MetricError(
                f"the output {name} of the example is {expected!r}, no number. Name the numbers in fields."
            )
        if came is None:
            return 0.0, unlike(name, expected, got, "no number")
        if wanted == came or abs(wanted - came) <= absolute:
            return 1.0, ""
        apart = _apart(wanted, came)
        if apart <= tolerance:
            return 1.0, ""
        value = 0.0 if apart >= zero_at else 1 - (apart - tolerance) / (zero_at - tolerance)
        direction = "too high" if came > wanted else "too low"
        return value, unlike(name, expected, got, f"{abs(came - wanted):g} {direction}")

    return compare_fields(example, prediction, fields, compare)


def number_of(value: Any) -> float | None:
    """A number, or the last number in a text; None where there is none. NaN is none, a bool is none."""
    value = plain(value)
    if isinstance(value, str):
        found = _NUMBER.findall(value)
        return float(found[-1].replace(",", "").replace("\N{MINUS SIGN}", "-")) if found else None
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond what a float holds
        number = math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):  # an array, say
        return None
    return None if math.isnan(number) else number


def _apart(wanted: float, came: float) -> float:
    if math.isinf(wanted) or math.isinf(came):
        return math.inf
    return abs(wanted - came) / max(abs(wanted), abs(came))


def tokens_of(value: Any) -> Counter[str]:
    """The words of a value, without case and punctuation."""
    text = value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)
    return Counter(_TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()))


def _compare_tokens(name: str, expected: Any, got: Any) -> tuple[float, str]:
    wanted, came = tokens_of(expected), tokens_of(got)
    if not wanted and not came:
        same = comparable(expected) == comparable(got)
        return float(same), "" if same else unlike(name, expected, got)
    common = (wanted & came).total()
    if common == wanted.total() == came.total():
        return 1.0, ""
    value = 2 * common / (wanted.total() + came.total())
    parts = [f"F1 {value:.2f}"]
    if lost := list(wanted - came):
        parts.append(f"missing: {listed(lost)}")
    if extra := list(came - wanted):
        parts.append(f"superfluous: {listed(extra)}")
    return value, unlike(name, expected, got, "; ".join(parts))
