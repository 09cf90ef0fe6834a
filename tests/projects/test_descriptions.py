"""The descriptions are what data/README.md says: by hand, distinct, with levels that exist, and families kept apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.projects.built_in import ADVISORS

DATA = Path(__file__).resolve().parents[2] / "data"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name / "descriptions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ADVISORS)
def test_there_are_enough_and_each_is_a_situation(name: str) -> None:
    found, advisor = rows(name), ADVISORS[name]
    assert len(found) >= 120
    assert len({row["request"].casefold() for row in found}) == len(found)
    for row in found:
        assert row.keys() == {"request", "context", *advisor.situation.model_fields}
        advisor.situation(**{field: row[field] for field in advisor.situation.model_fields})


@pytest.mark.parametrize("name", ADVISORS)
def test_the_page_has_the_hashes(name: str) -> None:
    page = (DATA / "README.md").read_text(encoding="utf-8")
    for file in ("descriptions.jsonl", "runs.parquet"):
        assert hashlib.sha256((DATA / name / file).read_bytes()).hexdigest() in page


@pytest.mark.parametrize("name", ADVISORS)
def test_every_level_occurs_and_something_is_left_out(name: str) -> None:
    found, advisor = rows(name), ADVISORS[name]
    for field in advisor.situation.model_fields:
        said = {row[field] for row in found}
        assert said == {*advisor.situation.levels(field), "unknown"}


@pytest.mark.parametrize("name", ADVISORS)
def test_they_are_not_filled_templates(name: str) -> None:
    """No five words begin more than a few, and lengths vary."""
    from collections import Counter

    found = rows(name)
    beginnings = Counter(" ".join(row["request"].split()[:5]).casefold() for row in found)
    assert beginnings.most_common(1)[0][1] <= 2
    lengths = [len(row["request"]) for row in found]
    assert max(lengths) > 8 * min(lengths)
