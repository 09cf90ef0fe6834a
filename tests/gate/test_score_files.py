"""Scores in files of ours and of other tools, and pairing them by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.score_files import read_scores
from dspy_toolkit.gate.scored_rows import ScoredRow, pair

SAMPLES = Path(__file__).parent / "samples"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_and_csv_say_the_same(tmp_path):
    lines = (
        '{"id": 1, "score": 1, "group": "a", "tokens": 10}\n\n{"id": "2", "score": 0.5, "group": "a", "tokens": 12}\n'
    )
    table = "\ufeffid,score,group,tokens\n1,1,a,10\n2,0.5,a,12\n"
    wanted = [ScoredRow("1", (1.0,), "a", 10.0), ScoredRow("2", (0.5,), "a", 12.0)]
    assert read_scores(written(tmp_path, "a.jsonl", lines)) == wanted
    assert read_scores(written(tmp_path, "a.csv", table)) == wanted


def test_a_score_may_be_a_list_of_repeats_true_or_in_another_column(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"row": "x", "value": [1, 0, true], "f1": "0.25"}\n')
    assert read_scores(path) == [ScoredRow("x", (1.0, 0.0, 1.0))]
    assert read_scores(path, "f1") == [ScoredRow("x", (0.25,))]


def test_promptfoos_rows_are_known_by_their_variables():
    rows = read_scores(SAMPLES / "promptfoo-old.json")
    assert [row.repeats for row in rows] == [(1,), (0,), (0,), (1,), (0,), (0,)]
    assert rows[1] == ScoredRow('{"thing": "rose"}', (0.0,), None, 40)
    assert pair(rows, read_scores(SAMPLES / "promptfoo-new.json")).new_tokens == 180


def test_inspects_epochs_are_repeats_and_its_letters_are_scores():
    rows = read_scores(SAMPLES / "inspect-old.json")
    assert [(row.id, row.repeats) for row in rows] == [("lime", (1, 0)), ("rose", (0, 0)), ("sky", (0.5, 0))]
    assert rows[0].tokens == 100


def test_a_table_of_mlflow_has_rows_and_groups():
    rows = read_scores(SAMPLES / "mlflow-old.json")
    assert rows[2] == ScoredRow("0000000000000002", (0.5,), "0000000000000001")


def test_several_prompts_or_scorers_are_not_guessed_between(tmp_path):
    results = json.loads((SAMPLES / "promptfoo-old.json").read_text())
    results["results"]["results"][0]["promptIdx"] = 1
    with pytest.raises(DatasetError, match="holds 2 prompts or providers. Run promptfoo with --filter-prompts"):
        read_scores(written(tmp_path, "both.json", json.dumps(results)))
    log = json.loads((SAMPLES / "inspect-old.json").read_text())
    for sample in log["samples"]:
        sample["scores"]["length"] = {"value": 0.5}
    path = written(tmp_path, "log.json", json.dumps(log))
    with pytest.raises(DatasetError, match="has the scorers match, length. Name one with --score"):
        read_scores(path)
    assert read_scores(path, "length")[0].repeats == (0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "id,score\n", "holds no rows"),
        ("a.csv", "id,score\na,1\nb,\n", "row 2 has no score or value; its columns are id, score"),
        ("a.csv", "name,score\na,1\n", "row 1 has no id or row or _row"),
        ("a.csv", "id,score\na,1\nb,7\n", r"row 2: the score '7' lies outside \[0, 1\]"),
        ("a.csv", "id,score\na,nan\n", "the score 'nan' lies outside"),
        ("a.csv", "id,score\na,good\n", "the score 'good' is not a number"),
        ("a.csv", "id,score\na,1\na,0\n", "has 1 ids more than once: 'a'. Give each row one id"),
        ("a.jsonl", '{"id": 1, "score": 1}\n{"id": 2, "sc', "line 2 is not JSON"),
        ("a.jsonl", '{"id": 1, "score": []}\n', "row 1 has no score: an empty list"),
        ("a.jsonl", "[1]\n", r"row 1 is \[1\], not an object"),
        ("a.json", "{}", "is none of: promptfoo's results, an Inspect log"),
        ("a.json", '{"eval": {}, "samples": [{"id": 1}]}', "sample 1 has no score"),
        ("a.txt", "1", r"is no .jsonl, .csv or .json file. Give"),
        ("a.eval", "PK", "Run `inspect log convert FILE --to json"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_names_the_row(tmp_path, name, text, said):
    with pytest.raises(DatasetError, match=said) as caught:
        read_scores(written(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(DatasetError, match=r"none.csv cannot be read"):
        read_scores(tmp_path / "none.csv")


NAMES = st.lists(st.text("abc", min_size=1), min_size=1, unique=True)


@given(NAMES, st.randoms())
def test_rows_are_paired_by_their_ids_whatever_their_order(names, random):
    old = [ScoredRow(name, (i % 2,)) for i, name in enumerate(names)]
    new = [ScoredRow(name, (i % 2,)) for i, name in enumerate(names)]
    random.shuffle(new)
    found = pair(old, new)
    assert found.ids == sorted(names)
    assert found.old == found.new
    assert found.groups is None


def test_rows_that_do_not_pair_are_named():
    rows = [ScoredRow(str(i), (1.0,)) for i in range(6)]
    with pytest.raises(DatasetError, match="4 of 6 rows are in the old file only: '2', '3', '4', …"):
        pair(rows, rows[:2])
    with pytest.raises(DatasetError, match="1 of 6 rows are in the new file only: '0'"):
        pair(rows[1:], rows)


def test_groups_must_agree_and_may_be_in_one_file_only():
    old, new = [ScoredRow("a", (1.0,), "g"), ScoredRow("b", (1.0,))], [ScoredRow("a", (0.0,)), ScoredRow("b", (1.0,))]
    assert pair(old, new).groups == ["g", "row b"]
    with pytest.raises(DatasetError, match="Row 'a' is in the groups g and h"):
        pair(old, [ScoredRow("a", (0.0,), "h"), new[1]])


def test_tokens_count_only_where_every_row_has_them():
    counted, not_counted = ScoredRow("a", (1.0,), None, 5), ScoredRow("b", (1.0,))
    assert pair([counted], [counted]).old_tokens == 5
    assert pair([counted, not_counted], [counted, not_counted]).old_tokens is None
