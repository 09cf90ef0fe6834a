"""Scores in files.

    .jsonl, .csv   one row each: an id (`id`, `row`, `_row`), a `score` or `value`, and if wanted a `group`, prompt `tokens`;
                   in JSON Lines a score may be a list of repeats
    .json          what promptfoo, Inspect or MLflow wrote (see `other_tools`), or a list of such rows

Not covered: fetching runs from a tracking server, which the command does.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.other_tools import rows_of_json
from dspy_toolkit.gate.scored_rows import SHOWN, ScoredRow, rows_of


def read_scores(path: Path, column: str = "") -> list[ScoredRow]:
    """The rows of a file.

    Args:
        path: see the module.
        column: the score's column, or scorer, where there are several.

    Raises:
        DatasetError: the file cannot be read, holds no rows, names one twice, or a row has no id or no score in [0, 1].
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Give a JSONL, CSV or JSON file of scores.") from error
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = rows_of(list(csv.DictReader(io.StringIO(text))), str(path), column)
    elif suffix in (".jsonl", ".ndjson"):
        records = [_parsed(line, f"{path}, line {at}") for at, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows = rows_of(records, str(path), column)
    elif suffix == ".json":
        rows = rows_of_json(_parsed(text, str(path)), str(path), column)
    else:
        hint = " Run `inspect log convert FILE --to json --output-dir DIR` first." if suffix == ".eval" else ""
        raise DatasetError(f"{path} is no .jsonl, .csv or .json file.{hint} Give scores in one of these.")
    if not rows:
        raise DatasetError(f"{path} holds no rows. Give one score for each row.")
    _refuse_twins([row.id for row in rows], str(path))
    return rows


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON: {error}. Correct it.") from None


def _refuse_twins(ids: Sequence[str], where: str) -> None:
    if len(set(ids)) == len(ids):
        return
    twins = sorted({name for name in ids if ids.count(name) > 1})
    shown = ", ".join(repr(name[:40]) for name in twins[:SHOWN])
    raise DatasetError(
        f"{where} has {len(twins)} ids more than once: {shown}{', …' if len(twins) > SHOWN else ''}. "
        "Give each row one id, and repeats as a list of scores."
    )
