"""`dspy-toolkit gate`: what it prints, its exit codes, and its summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_toolkit.cli import main

SAMPLES = Path(__file__).parents[1] / "gate" / "samples"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for name, scores in (("old", [0] * 30 + [1] * 170), ("new", [1] * 190 + [0] * 10)):
        lines = [json.dumps({"id": i, "score": score, "tokens": 7}) for i, score in enumerate(scores)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        main(["gate", *arguments])
        code = 0
    except SystemExit as end:
        assert isinstance(end.code, int | None)
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_a_better_one_is_promoted_with_exit_code_0(capsys):
    code, out, _ = run(capsys, "old.jsonl", "new.jsonl", "--ledger", "openings.jsonl")
    assert code == 0
    assert (
        out == "promoted: Better than the champion: +10.0 points on 200 sealed rows (97.5 % interval +3.1 to +17.3).\n"
    )
    assert Path("openings.jsonl").exists()


def test_a_worse_one_and_the_same_one_end_with_1(capsys):
    code, out, _ = run(capsys, "new.jsonl", "old.jsonl")
    assert code == 1 and out.startswith("refused: Worse than the champion")
    assert "pass --ledger FILE" in out
    code, out, _ = run(capsys, "old.jsonl", "old.jsonl", "--ledger", "openings.jsonl")
    assert code == 1 and out.startswith("unchanged: ")
    assert not Path("openings.jsonl").exists()


def test_bad_input_ends_with_2_and_one_line(capsys):
    code, out, err = run(capsys, "old.jsonl", "none.jsonl")
    assert (code, out) == (2, "")
    assert err.startswith("Error: none.jsonl cannot be read") and err.count("\n") == 1
    code, _, err = run(capsys, "old.jsonl", "new.jsonl", "--rate", "0.9", "--ledger", "openings.jsonl")
    assert code == 2 and "between 0 and 0.5" in err


def test_as_json(capsys):
    code, out, _ = run(capsys, "old.jsonl", "new.jsonl", "--json")
    found = json.loads(out)
    assert (code, found["outcome"], found["promoted_for"], found["evidence"]["n"]) == (0, "promoted", "quality", 200)


def test_the_summary_is_added_to_the_file_that_github_names(capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("# Before\n")
    run(capsys, "old.jsonl", "new.jsonl")
    text = Path("summary.md").read_text()
    assert text.startswith("# Before\n### ✅ Gate: promoted\n\nBetter than the champion: +10.0 points")
    assert "| Difference | +10.0 points |" in text
    run(capsys, "new.jsonl", "old.jsonl", "--summary", "other.md")
    assert Path("other.md").read_text().startswith("### ❌ Gate: refused")


@pytest.mark.parametrize("tool", ["promptfoo", "inspect", "mlflow"])
def test_files_of_other_tools_are_judged(capsys, tool):
    code, out, _ = run(capsys, str(SAMPLES / f"{tool}-old.json"), str(SAMPLES / f"{tool}-new.json"))
    assert code == 1
    assert "would have been shown four times in five" in out, "six rows prove nothing"


def test_a_cheaper_one_is_measured_from_the_anchor(capsys, here):
    for name, right, tokens in (("anchor", 2000, 10), ("live", 1950, 9), ("next", 1950, 5)):
        lines = [json.dumps({"id": i, "score": int(i < right), "tokens": tokens}) for i in range(2000)]
        (here / f"{name}.jsonl").write_text("\n".join(lines))
    assert run(capsys, "live.jsonl", "next.jsonl")[0] == 0
    assert run(capsys, "live.jsonl", "next.jsonl", "--anchor", "anchor.jsonl")[0] == 1


def test_power_says_how_many_rows(capsys):
    code, out, _ = run(capsys, "power", "--gain", "5", "--discordance", "20")
    assert code == 0
    assert out == (
        "A test of 758 rows shows a true gain of 5.0 points with 80% probability, at the first look (alpha 1.25%).\n"
    )
    code, _, err = run(capsys, "power")
    assert code == 2 and "Give a gain to find the rows" in err


def test_a_run_of_mlflow_is_fetched(capsys, here, monkeypatch):
    import shutil

    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.runs import record_run

    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(here / "home"))
    settings = load_settings()
    table = (SAMPLES / "mlflow-old.json").read_text()
    run_id = record_run(settings, "p", "a run", {}, {}, {"rows_sealed.json": table})
    shutil.copy(SAMPLES / "mlflow-new.json", here / "new.json")
    code, out, _ = run(capsys, f"runs:/{run_id}", "new.json")
    assert code == 1 and "6 sealed rows in 3 groups" in out
    code, _, err = run(capsys, f"runs:/{run_id}/none.json", "new.json")
    assert code == 2 and "Cannot read the run" in err
