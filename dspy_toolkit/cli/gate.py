"""`dspy-toolkit gate`: whether a new program is better than the old one, by two files of scores; and how many rows it takes.

The exit code is for scripts: 0 promoted, 1 refused or unchanged, 2 what was given cannot be judged. It needs no model, no
settings and no home.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text, printable

if TYPE_CHECKING:
    from dspy_toolkit.gate import Verdict
    from dspy_toolkit.gate.scored_rows import ScoredRow

RUN = re.compile(r"runs:/(?P<run>[^/]+)(?:/(?P<table>.+))?")
RUN_TABLES = ("rows_sealed.json", "eval_results_table.json")
"""Where a run of this toolkit, and MLflow's own evaluation, keep what each row scored."""


def judge(
    old: str,
    new: str,
    *,
    ledger: Annotated[Path | None, Parameter(show_default=False)] = None,
    anchor: Annotated[str, Parameter(show_default=False)] = "",
    score: Annotated[str, Parameter(show_default=False)] = "",
    rate: float = 0.05,
    name: str = "gate",
    summary: Annotated[Path | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> None:
    """Say whether a new program is better than the old one on rows that neither was tuned on.

    Each file holds one program's scores in [0, 1]: JSON Lines or CSV with the columns id and score (and, if wanted,
    group and tokens), the results of promptfoo, a log of Inspect as JSON, or a table of an MLflow run
    (runs:/ID/table.json). The exit code is 0 promoted, 1 refused or unchanged, 2 bad input.

    Args:
        old: Scores of the program that is live.
        new: Scores of the candidate, on the same rows.
        ledger: The file that counts how often these rows were looked at; made by the first look. The same scores again are
            no new look.
        anchor: Scores of the last program that was promoted for its answers, where the live one was promoted for its
            fewer tokens.
        score: The column or scorer that holds the score.
        rate: The chance of ever promoting a program that is not better, over the life of these rows.
        name: What the ledger calls the test.
        summary: Add a summary in Markdown to this file; $GITHUB_STEP_SUMMARY where it is set.
        json: Print the verdict and the evidence as JSON.
    """
    from dspy_toolkit.gate import decide
    from dspy_toolkit.gate.scored_rows import pair

    with _bad_input():
        before, after = _rows(old, score), _rows(new, score)
        rows = pair(before, after)
        anchored = pair(_rows(anchor, score), after).old if anchor else None
        verdict = decide(
            rows.old,
            rows.new,
            groups=rows.groups,
            rows=rows.ids,
            old_tokens=rows.old_tokens,
            new_tokens=rows.new_tokens,
            anchor_scores=anchored,
            ledger=ledger,
            rate=rate,
            name=name,
        )
        if where := summary or os.environ.get("GITHUB_STEP_SUMMARY"):
            _write_summary(Path(where), markdown(verdict, old, new))
    if json:
        print(json_text(verdict.model_dump(mode="json"), indent=2))
    else:
        print(printable(f"{verdict.outcome}: {verdict.reason}"))
        if ledger is None and verdict.evidence is not None:
            print("No ledger was given: look once, or pass --ledger FILE.")
    if verdict.outcome != "promoted":
        raise SystemExit(1)


def power(
    *,
    gain: Annotated[float | None, Parameter(show_default=False)] = None,
    rows: Annotated[int | None, Parameter(show_default=False)] = None,
    discordance: Annotated[float | None, Parameter(show_default=False)] = None,
    sd: Annotated[float | None, Parameter(show_default=False)] = None,
    rate: float = 0.05,
    looks: int = 1,
    json: Json = False,
) -> None:
    """Say how many rows a wanted gain needs, or what gain so many rows show; given both, how often.

    Args:
        gain: The true gain, in points.
        rows: Rows of the test.
        discordance: The percentage of rows that one of the two programs gets right and the other wrong; 20 when not given.
        sd: For graded scores, the standard deviation of the differences, in points.
        rate: The false-promotion rate over the life of the rows.
        looks: Which look at the rows it is.
        json: Print JSON.
    """
    from dspy_toolkit.gate import power as power_of

    with _bad_input():
        found = power_of(
            gain=_share(gain), rows=rows, discordance=_share(discordance), sd=_share(sd), rate=rate, looks=looks
        )
    if json:
        print(json_text(found._asdict(), indent=2))
        return
    print(
        f"A test of {found.rows:,} rows shows a true gain of {100 * found.gain:.1f} points with {found.power:.0%} "
        f"probability, at the {_ordinal(looks)} look (alpha {found.alpha:.2%})."
    )


def markdown(verdict: Verdict, old: str, new: str) -> str:
    """The verdict as GitHub shows it on a run's page."""
    marks = {"promoted": "✅", "refused": "❌", "unchanged": "➖"}
    lines = [f"### {marks[verdict.outcome]} Gate: {verdict.outcome}", "", verdict.reason]
    if (seen := verdict.evidence) is not None:
        points = {
            "Old → new": f"`{_code(old)}` → `{_code(new)}`",
            "Difference": f"{100 * seen.delta:+.1f} points",
            "Interval": f"{100 * seen.low:+.1f} to {100 * seen.high:+.1f} ({seen.level:.4%} level, {seen.test})",
            "Rows": f"{seen.n} in {seen.groups} groups",
            "Shown four times in five": f"a true gain of {100 * seen.detectable_effect:.1f} points",
            "Prompt tokens, new over old": f"{seen.tokens_ratio:.2f}",
            "Looks at these rows": f"{seen.looks}, with {seen.alpha_left:.0%} of the rate left",
        }
        lines += ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in points.items())]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return printable(text).replace("`", "'").replace("|", "\\|").replace("\n", " ")


def _rows(where: str, score: str) -> list[ScoredRow]:
    from dspy_toolkit.gate.score_files import read_scores

    if (run := RUN.fullmatch(where)) is None:
        return read_scores(Path(where), score)
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-") as folder:
        return read_scores(_table_of(run["run"], run["table"], Path(folder)), score)


def _table_of(run: str, table: str | None, folder: Path) -> Path:
    """A table of an MLflow run, fetched from the registry of the settings."""
    from dspy_toolkit.errors import DatasetError
    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.mlflow_client import session

    settings = load_settings()
    with session(settings, f"Cannot read the run {run}") as client:
        there = [file.path for file in client.list_artifacts(run)]
        wanted = table or next((name for name in RUN_TABLES if name in there), None)
        if wanted is None:
            shown = ", ".join(name for name in there if name.endswith(".json")) or "no JSON file"
            raise DatasetError(
                f"The run {run} has none of {', '.join(RUN_TABLES)}; it has {shown}. Write runs:/{run}/TABLE."
            )
        return Path(client.download_artifacts(run, wanted, str(folder)))


def _write_summary(path: Path, text: str) -> None:
    from dspy_toolkit.durable import writing

    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def _bad_input() -> Iterator[None]:
    """An error of the toolkit ends the command with 2, since 1 is a verdict."""
    import sys

    from dspy_toolkit.errors import ToolkitError

    try:
        yield
    except ToolkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _ordinal(number: int) -> str:
    words = {1: "first", 2: "second", 3: "third"}
    return words.get(number, f"{number}th")
