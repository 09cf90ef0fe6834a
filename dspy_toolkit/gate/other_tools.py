"""Scores in what promptfoo, Inspect and MLflow write as JSON.

promptfoo  `promptfoo eval --output results.json`: {"results": {"version": 3, "results": [{"vars", "score", …}]}}; a row is known
           by its variables, and the same ones again are repeats (promptfoo.dev/docs/configuration/outputs)
Inspect    a log as JSON (`inspect log convert FILE --to json --output-dir DIR`): {"eval", "samples": [{"id", "epoch", "scores"}]};
           epochs are repeats, and the letters C, P, I, N are 1, 0.5, 0, 0 (inspect.aisi.org.uk/eval-logs.html)
MLflow     a table of a run: {"columns": […], "data": [[…], …]} (mlflow.org, `mlflow.log_table`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.scored_rows import ScoredRow, rows_of, score_of

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's correct, partially correct, incorrect, no answer."""


def rows_of_json(value: Any, where: str, column: str = "") -> list[ScoredRow]:
    """The rows of a parsed JSON file; `column` names a scorer or a column where there are several.

    Raises:
        DatasetError: it is none of the known forms, or holds several prompts, providers or scorers.
    """
    if isinstance(value, list):
        return rows_of(value, where, column)
    if isinstance(value, Mapping):
        results = value.get("results")
        if isinstance(results, Mapping) and isinstance(results.get("results"), list):
            return _promptfoo(results["results"], where)
        if isinstance(value.get("samples"), list) and "eval" in value:
            return _inspect(value["samples"], where, column)
        if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
            columns = [str(name) for name in value["columns"]]
            return rows_of([dict(zip(columns, row, strict=False)) for row in value["data"]], where, column)
    raise DatasetError(
        f"{where} is none of: promptfoo's results, an Inspect log with samples, an MLflow table, a list of rows. "
        "Write JSON Lines with an id and a score in each."
    )


def _promptfoo(results: list[dict[str, Any]], where: str) -> list[ScoredRow]:
    ran = {(result.get("promptIdx", 0), str(_provider(result))) for result in results}
    if len(ran) > 1:
        raise DatasetError(
            f"{where} holds {len(ran)} prompts or providers. Run promptfoo with --filter-prompts and "
            "--filter-providers, so that a file holds one program."
        )
    found = []
    for number, result in enumerate(results, start=1):
        at = f"{where}, result {number}"
        case = result.get("testCase") or {}
        values = result.get("vars") or case.get("vars")
        name = case.get("description") if not values else json.dumps(values, sort_keys=True, ensure_ascii=False)
        if not name or "score" not in result:
            raise DatasetError(f"{at} has no {'score' if name else 'vars'}. Give results of `promptfoo eval`.")
        usage = result.get("tokenUsage") or (result.get("response") or {}).get("tokenUsage") or {}
        found.append((name, score_of(result["score"], at), usage.get("prompt")))
    return _gathered(found)


def _provider(result: Mapping[str, Any]) -> Any:
    provider = result.get("provider")
    return provider.get("id") if isinstance(provider, Mapping) else provider


def _inspect(samples: list[dict[str, Any]], where: str, scorer: str) -> list[ScoredRow]:
    found = []
    for number, sample in enumerate(samples, start=1):
        at = f"{where}, sample {sample.get('id', number)}"
        scores = sample.get("scores") or {}
        if not scores:
            raise DatasetError(f"{at} has no score. Run the log again, or `inspect score` it.")
        if (not scorer and len(scores) > 1) or (scorer and scorer not in scores):
            raise DatasetError(f"{at} has the scorers {', '.join(scores)}. Name one with --score.")
        value = scores[scorer or next(iter(scores))].get("value")
        score = LETTERS[value] if isinstance(value, str) and value in LETTERS else score_of(value, at)
        usage: Iterable[Mapping[str, Any]] = (sample.get("model_usage") or {}).values()
        counts = [each["input_tokens"] for each in usage if each.get("input_tokens") is not None]
        found.append((str(sample.get("id", number)), score, sum(counts) if counts else None))
    return _gathered(found)


def _gathered(found: list[tuple[str, float, float | None]]) -> list[ScoredRow]:
    """One row for each name: its scores are repeats, its tokens add up."""
    rows: dict[str, list[tuple[float, float | None]]] = {}
    for name, score, tokens in found:
        rows.setdefault(name, []).append((score, tokens))
    return [
        ScoredRow(
            name,
            tuple(score for score, _ in repeats),
            None,
            None if any(tokens is None for _, tokens in repeats) else sum(tokens or 0 for _, tokens in repeats),
        )
        for name, repeats in rows.items()
    ]
