"""The file of replies: read line by line, the last word of each request, one clear error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.monitoring.feedback import replies
from dspy_toolkit.settings import Settings


def line(**changes: Any) -> str:
    said = {
        "at": "2026-11-27T01:00:00+00:00",
        "request_id": "r1",
        "trace_id": "tr-1",
        "program": "questions",
        "version": 1,
        "inputs": {"text": "Who?"},
        "prediction": {"label": "person"},
        "cached": False,
        "seconds": 0.5,
        "rating": None,
        "labels": None,
    }
    return json.dumps(said | changes) + "\n"


def write(home: Settings, text: str) -> None:
    file = home.path("feedback", "questions.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_what_is_said_later_of_a_request_counts(home: Settings) -> None:
    assert replies(home, "questions") == []
    write(home, line() + line(request_id="r2") + line(labels={"label": "number"}, new_key=1) + '{"at": "being wri')
    first, second = replies(home, "questions")
    assert (first.request_id, first.labels, second.labels) == ("r1", {"label": "number"}, None)


@pytest.mark.parametrize("bad", ["no JSON\n", '{"at": 1}\n', line(seconds="long")])
def test_a_line_that_cannot_be_read_is_named(home: Settings, bad: str) -> None:
    write(home, line() + bad)
    with pytest.raises(DatasetError, match=r"questions.jsonl, line 2: .*Correct the line"):
        replies(home, "questions")
