"""Real runs on the toy task: what the steps found, to the page in MLflow and under the home."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit import optimize
from dspy_toolkit.display.summary import print_summary
from dspy_toolkit.display.tables import console
from dspy_toolkit.errors import StoreError
from dspy_toolkit.evaluation import class_reports
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.pipeline.compare import LEDGER
from dspy_toolkit.pipeline.record import report_of, report_path
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.run import ReleasedRun
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import connect
from tests.optimizers.benches import Bench
from tests.optimizers.toys import HINT, Toy, by_instruction, question, records
from tests.report.looking import look


class Pages(Bench):
    """The toy as a project in files, with the pages of its runs."""

    def run(self, optimizer: str = "gepa") -> tuple[ReleasedRun, str]:
        release_baseline(self.context(), self.resolve())
        return self.whole(optimizer=optimizer)

    def page(self, run_id: str) -> str:
        return report_path(self.context(), run_id).read_text(encoding="utf-8")

    def artifact(self, run_id: str) -> str:
        return self.toy.settings.path("artifacts", run_id, "artifacts", "report.html").read_text(encoding="utf-8")


@pytest.fixture
def bench(home: Settings, tmp_path: Path) -> Pages:
    return Pages(home, tmp_path / "project")


def test_a_promoted_run_has_its_page_in_mlflow_and_under_the_home(bench: Pages) -> None:
    run, run_id = bench.run()
    decision = run.decision
    assert decision.outcome == "promoted"
    html = bench.page(run_id)
    assert html == bench.artifact(run_id)
    assert report_path(bench.context(), run_id) == bench.toy.settings.path("reports", "colours", f"{run_id}.html")
    seen = look(html)
    assert decision.reason in seen.text
    assert "Version 2 is the champion now." in seen.text
    assert "Before is version 1, the champion." in seen.text
    assert "Classify." in seen.text and HINT in seen.text
    comparison = run.comparison.sealed
    assert comparison is not None
    gained = round((comparison.candidate.mean - comparison.champion.mean) * comparison.candidate.n)
    assert f"of the sealed test, {gained} scored higher after and 0 lower." in seen.text
    assert "These rows are sealed, and not shown" in seen.text and "Won:" not in seen.text
    sealed = set(bench.toy.store.read_frame(run.dataset.sealed)["text"])
    assert not [text for text in sealed if text in html]
    assert {line[0] for line in seen.table("label, on the sealed test")[1:]} == {"red", "green", "blue"}
    assert len(seen.table("Confusion of label")[0]) == 5
    assert len(seen.table("Every candidate")) == len(run.compiled.trials) + 1
    assert seen.table("What each step")[2][1] == f"{run.compiled.usage.lm_calls:,}"


def test_sealed_rows_are_shown_to_whoever_asks_for_them(bench: Pages) -> None:
    run, _ = bench.run()
    context = bench.context()
    asked = context.settings.model_copy(
        update={"observe": context.settings.observe.model_copy(update={"show_sealed_rows": True})}
    )
    html = report_of(replace(context, settings=asked), run)
    seen = look(html)
    comparison = run.comparison.sealed
    assert comparison is not None
    gained = round((comparison.candidate.mean - comparison.champion.mean) * comparison.candidate.n)
    assert f"Won: {gained}" in seen.text and "Lost: 0" in seen.text
    assert [text for text in bench.toy.store.read_frame(run.dataset.sealed)["text"] if text in html]


def test_macro_f1_is_in_mlflow_and_in_the_summary(bench: Pages) -> None:
    run, run_id = bench.run()
    sealed = run.comparison.sealed
    assert sealed is not None
    [found] = class_reports(
        bench.context().store.read_frame(sealed.candidate.rows), ["label"], fields_of(bench.context().project.build())
    )
    written = connect(bench.toy.settings).get_run(run_id).data.metrics
    assert written["sealed_macro_f1"] == pytest.approx(found.macro_f1.value)
    assert written["sealed_accuracy"] == pytest.approx(sealed.candidate.mean)
    assert (written["sealed_errors"], written["sealed_truncated"]) == (0, 0)
    assert 0 <= written["val_macro_f1"] <= 1
    shown = io.StringIO()
    print_summary(bench.context(), run, console(width=200, file=shown))
    assert f"candidate {found.macro_f1.value:.1%} (" in shown.getvalue()
    assert f"on {found.n} sealed rows" in shown.getvalue()


def test_a_run_that_learnt_the_validation_rows_by_heart_is_refused_with_the_rows_it_lost(bench: Pages) -> None:
    _, data, _ = bench.begin()
    sealed = set(bench.toy.store.read_frame(data.sealed)["text"])
    bench.toy.knows = lambda request: by_instruction(request) and question(request) not in sealed
    run, run_id = bench.run()
    decision = run.decision
    assert decision.outcome == "refused"
    seen = look(bench.page(run_id))
    assert seen.headings[1] == (2, "Refused")
    assert "Not shown to be better than the champion" in seen.text
    assert "of the sealed test, 0 scored higher after and 0 lower." in seen.text
    assert run.comparison.sealed is not None


def test_making_a_page_opens_no_sealed_row(bench: Pages) -> None:
    bench.toy.knows = lambda request: False
    run, _ = bench.run("bootstrap")
    assert run.decision.outcome == "unchanged"
    asked = len(Ledger(bench.toy.settings.path(LEDGER)).openings())
    sealed = bench.toy.store.read_frame(run.dataset.sealed)
    bench.toy.store.delete(run.dataset.sealed)
    html = report_of(bench.context(), run)
    assert len(Ledger(bench.toy.settings.path(LEDGER)).openings()) == asked == 0
    assert not [text for text in sealed["text"] if text in html]


def test_a_perfect_program_has_a_page_too(bench: Pages) -> None:
    bench.toy.knows = lambda request: True
    run, run_id = bench.run("auto")
    assert run.decision.outcome == "unchanged"
    seen = look(bench.page(run_id))
    assert "there is nothing to gain" in seen.text


def test_a_champion_whose_files_are_gone_costs_half_a_page_and_no_run(
    bench: Pages, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    run, _ = bench.run()
    first = connect(bench.toy.settings).get_model_version("colours", "1").run_id
    shutil.rmtree(bench.toy.settings.path("artifacts", str(first)))
    seen = look(report_of(bench.context(), run))
    assert "The program before cannot be read" in seen.text
    assert "The report goes without the program before" in caplog.text


def test_a_page_that_cannot_be_written_fails_the_run_and_says_so(bench: Pages) -> None:
    bench.toy.settings.path("reports").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="Cannot write .*reports"):
        bench.run("labelled")
    client = connect(bench.toy.settings)
    experiment = client.get_experiment_by_name(bench.toy.settings.registry.experiment)
    assert experiment is not None
    (latest, *_) = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    assert latest.info.status == "FAILED"


def test_optimize_gives_a_page(tmp_path: Path) -> None:
    from tests.optimizers.toys import program

    toy = Toy(tmp_path)
    toy.knows = by_instruction
    connection = toy.connect()
    result: Any = optimize(program(), records(110), settings=toy.settings, connection=connection)
    seen = look(result.report())
    assert result.improved
    assert result.reason in seen.text
    assert "Before is the baseline." in seen.text
    assert HINT in seen.text
    assert not toy.settings.path("reports").exists()
