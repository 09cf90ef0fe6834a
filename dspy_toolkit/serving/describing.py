"""A program in words and schemas, for clients and the page: its fields, scores, lineage and levers; not its prompt."""

from __future__ import annotations

from typing import Any

from dspy_toolkit.lm.levers import levers_of
from dspy_toolkit.project.states import levers_in_words
from dspy_toolkit.serving.programs import Live

SCORE = ("mean", "low", "high", "n", "delta")


def describe(live: Live) -> dict[str, Any]:
    """All that may be said of a program. Demonstrations are rows of somebody's data, and stay inside."""
    manifest = live.manifest
    about: dict[str, Any] = {
        "project": live.name,
        "summary": live.project.summary,
        "version": live.version,
        "model": live.model,
        "asynchronous": live.asynchronous,
        "inputs": live.fields.inputs.json_schema(),
        "outputs": live.fields.outputs.json_schema(mode="serialization"),
        "example": live.fields.example,
        "levers": {name: levers_in_words(levers_of(predictor)) for name, predictor in live.program.named_predictors()},
        "demonstrations": sum(len(predictor.demos) for predictor in live.program.predictors()),
    }
    if manifest is not None:
        about |= {
            "optimizer": manifest.optimizer,
            "metric": manifest.metric,
            "parent": manifest.parent,
            "previous_champion": manifest.previous_champion,
            "created": manifest.created,
            "trained_rows": len(manifest.trained_rows),
            "scores": {
                name: {key: report[key] for key in SCORE if key in report}
                for name, report in manifest.reports.items()
                if isinstance(report, dict)
            },
        }
    return about
