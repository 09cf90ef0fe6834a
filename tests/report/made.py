"""Runs made by hand: every value of them can be set, odd ones too, and no model is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pandas as pd

from dspy_toolkit.datasets import Dataset, DatasetSpec
from dspy_toolkit.evaluation import Report
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.optimizers.compile import Trial
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import ChampionPart, DataPart, ProgramPart, Project, ProjectRef
from dspy_toolkit.registry import Decision
from dspy_toolkit.report import gather, render
from dspy_toolkit.report.gathering import Page
from dspy_toolkit.run import Comparison, ReleasedRun, Run, SealedTest
from dspy_toolkit.store import Ref, Store


def row(key: str, value: float, **changes: Any) -> dict[str, Any]:
    """One row of a per-row table; `inputs`, `expected` and `prediction` as JSON values."""
    made = {
        "_row": key,
        "_group": key,
        "value": float(value),
        "feedback": "Right." if value else "Wrong.",
        "status": "ok",
        "prediction": {"label": "red"},
        "expected": {"label": "red"},
        "inputs": {"text": f"text {key}"},
    } | changes
    for name in ("prediction", "expected", "inputs"):
        made[name] = json.dumps(made[name], ensure_ascii=False)
    return made


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def trial(label: str, val_mean: float, lm_calls: int, generator: str = "gepa", **more: Any) -> Trial:
    seen = {"val_mean": val_mean, "expected": val_mean, "rows": 20, "generator": generator}
    return Trial(label=label, lm_calls=lm_calls, **seen | more)


class Desk:
    """A project of one predictor, and runs of it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "objects"))
        self.project = self.project_of("text: str -> label: Literal['red', 'green', 'blue']")

    def project_of(self, signature: str, outputs: tuple[str, ...] = ("label",), **options: Any) -> Project:
        spec = DatasetSpec(source="toy.csv", inputs=("text",), outputs=outputs)
        made = {"name": "colours", "summary": "Say a colour", "program": lambda: dspy.Predict(signature)}
        return Project(**made | {"metric": exact_match, "dataset": spec} | options)

    def report(self, rows: Sequence[dict[str, Any]], split: str) -> Report:
        values = [line["value"] for line in rows]
        mean = sum(values) / len(values)
        faults = [line["status"] for line in rows]
        return Report(
            split=split,
            mean=mean,
            low=max(0.0, mean - 0.1),
            high=min(1.0, mean + 0.1),
            n=len(rows),
            parse_retries=0,
            parse_failures=faults.count("parse_failure"),
            metric_errors=faults.count("metric_error"),
            usage=Usage(
                lm_calls=len(rows),
                physical_calls=len(rows) // 2,
                prompt_tokens=100 * len(rows),
                completion_tokens=5 * len(rows),
            ),
            seconds=75.0,
            rows=self.store.save_frame(table(rows)),
        )

    def state(self, instructions: str = "Classify.", demos: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        state = state_of(self.project.build())
        state["signature"]["instructions"], state["demos"] = instructions, list(demos)
        return state

    def run(
        self,
        before: Sequence[dict[str, Any]] | None = None,
        after: Sequence[dict[str, Any]] | None = None,
        *,
        sealed: bool = True,
        outcome: str = "promoted",
        state: dict[str, Any] | None = None,
        champion: int | None = 1,
        choice: dict[str, Any] | None = None,
        compiled: dict[str, Any] | None = None,
    ) -> Run:
        """A run whose candidate and champion answered `after` and `before`; both None: nothing was compared."""
        reports = None
        if before is not None and after is not None:
            reports = [self.report(rows, "val") for rows in (after, before)]
        test = None
        if sealed and before is not None and after is not None:
            ours, theirs = self.report(after, "sealed"), self.report(before, "sealed")
            test = SealedTest(
                n=ours.n,
                candidate=ours,
                champion=theirs,
                delta=ours.mean - theirs.mean,
                low=-0.015,
                high=0.148,
                level=0.975,
                test="tango",
                detectable_effect=0.111,
                looks=2,
                alpha_left=0.5,
                tokens_ratio=1.25,
            )
        same = self.store.save_json(state or self.state())
        # No page needs a split: none of the three is in the store.
        split = Ref(sha256="0" * 64, kind="parquet")
        part = {"project": "colours", "location": ""}
        model = {"model": "mlx/toy@1", "reflection_model": "openai/big"}
        trials = (trial("baseline", 0.2, 10), trial("candidate 1", 0.5, 40), trial("candidate 2", 0.4, 70))
        made: dict[str, Any] = {
            "optimizer": "gepa",
            "winner": "gepa",
            "program": same,
            "changed": True,
            "val_mean": 0.5,
            "val_baseline": 0.2,
            "usage": Usage(lm_calls=70, physical_calls=60, prompt_tokens=7_000, completion_tokens=350),
            "seconds": 12.0,
            "trials": trials,
        }
        chosen: dict[str, Any] = {
            "settings": PoolSettings(optimizer="gepa", generators=("gepa",), rungs=(8, 10)),
            "budget": "light",
            "lm_calls": 300,
            "predicted_lm_calls": 290,
            "reason": "The metric explains itself.",
            "alternatives": {"mipro": "gepa comes first"},
        }
        return Run(
            name="optimize colours",
            ref=ProjectRef(
                name="colours",
                location="",
                data=DataPart(**part, fingerprint="d"),
                program=ProgramPart(**part, **model, fingerprint="p"),
                champion=ChampionPart(version=champion, sha256=champion and "c"),
            ),
            dataset=Dataset(train=split, val=split, sealed=split, report=split),
            profile=Profile(
                train=30,
                val=24,
                probed=20,
                baseline=0.2,
                pass_rate=0.2,
                parse_failures=1,
                metric_errors=0,
                graded=False,
                feedback=True,
                predictors=1,
                calls_per_run=1.5,
                prompt_tokens=100.0,
                completion_tokens=5.0,
                seconds_per_call=0.1,
                reflector_ok=True,
                reflector_note="it wrote 'Say the colour.'",
            ),
            choice=Choice(**chosen | (choice or {})),
            compiled=Compiled(**made | (compiled or {})),
            comparison=Comparison(
                outcome=outcome,  # pyright: ignore[reportArgumentType]
                reason="Better than the champion: +6.7 points.",
                candidate_val=reports and reports[0],
                champion_val=reports and reports[1],
                sealed=test,
                reference_rules={"keyword rule": 0.292} if test else {},
            ),
        )

    def released(self, run: Run, **decided: Any) -> ReleasedRun:
        made = {"outcome": run.comparison.outcome, "reason": run.comparison.reason, "version": None, "previous": 1}
        return ReleasedRun(**dict(run), decision=Decision(**made | decided))

    def gather(self, run: Run, before: dict[str, Any] | None = None, **decided: Any) -> Page:
        released, state = self.released(run, **decided), before or self.state()
        return gather(released, self.project, self.store, state, show_sealed_rows=True)

    def html(self, run: Run, before: dict[str, Any] | None = None, **decided: Any) -> str:
        return render(self.gather(run, before, **decided))
