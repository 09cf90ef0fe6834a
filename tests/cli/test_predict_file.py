"""`predict --file --to`: a bar at a terminal, and a process that was killed leaves what the next one goes on with."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.predicting.writing import PART
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection
from tests.engines import own_engines
from tests.lm.openai_server import OpenAIServer
from tests.optimizers.toys import field_in

ROOT = Path(__file__).parents[2]
ROWS = [{"text": f"thing {number}"} for number in range(20)]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ECHO = """
name = "echo"
summary = "Say it again"
signature = "text: str -> said: str"
[dataset]
source = "echo.csv"
inputs = ["text"]
outputs = ["said"]
"""


def test_a_process_that_is_killed_leaves_what_the_next_one_goes_on_with(
    command, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.path("mlflow.db").unlink()  # nothing is promoted: the process need not load MLflow to know it
    (tmp_path / "echo.toml").write_text(ECHO)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    to, threads = tmp_path / "answers.jsonl", 2
    words = ("predict", str(tmp_path / "echo.toml"), "--file", str(tmp_path / "rows.jsonl"), "--to", str(to))

    def said(body: Any) -> dict[str, str]:
        time.sleep(0.05)
        return {"said": field_in("text", body["messages"][-1]["content"])}

    with OpenAIServer(said) as server, own_engines():
        for name, value in {
            "HOME": str(home.path()), "LM__MODEL": "openai/slow", "LM__API_BASE": server.address, "LM__API_KEY": "none",
            "OPTIMIZE__THREADS": str(threads),
        }.items():  # fmt: skip
            monkeypatch.setenv(f"DSPY_TOOLKIT_{name}", value)
        monkeypatch.setenv("TERM", "xterm")
        terminal, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", "from dspy_toolkit.cli import main; main()", *words],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        seen = ""
        try:
            while f"{PART * threads}/{len(ROWS)}" not in seen:  # the bar, once the first rows are written
                seen += os.read(terminal, 4096).decode()
        finally:
            process.kill()
            assert process.communicate()[0] == b""
            os.close(terminal)
        kept = lines(to)
        assert 0 < len(kept) < len(ROWS)
        asked = len(server.received)
        ended = command(*words, "--json")
        assert ended.code == 0 and f"{to} has {len(kept)} of {len(ROWS)} answers already" in ended.err
        assert json.loads(ended.out) == {"file": str(to), "rows": len(ROWS), "unreadable": 0}
        assert lines(to) == [{"said": row["text"]} for row in ROWS]
        again = [field_in("text", each.body["messages"][-1]["content"]) for each in server.received[asked:]]
    assert not {line["said"] for line in kept} & set(again)


def test_replies_that_cannot_be_read_are_counted_as_json_too(
    command, questions: Path, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, to = questions.with_name("rows.csv"), questions.with_name("answers.jsonl")
    rows.write_text("text\nWho?\nHow many?\n")
    connection = fake_connection(["nothing", {"label": "number"}], home, check_grammar=False)
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", connection.model)
    monkeypatch.setenv("DSPY_TOOLKIT_OPTIMIZE__THREADS", "1")
    ended = command("predict", str(questions), "--file", str(rows), "--to", str(to), "--json")
    assert ended.code == 1 and "1 of 2 replies could not be read" in ended.err
    assert json.loads(ended.out) == {"file": str(to), "rows": 2, "unreadable": 1}


def test_without_a_file_to_write_the_help_says_that_nothing_is_kept(command) -> None:
    said = " ".join(command("predict", "--help").out.split())
    assert (
        "Without --to the answers to a file go to stdout, with no bar, and a run that is stopped begins anew." in said
    )


def test_to_needs_a_file(command, questions: Path) -> None:
    ended = command("predict", str(questions), "--text", "x", "--to", "a.jsonl")
    assert ended.code == 1 and "Add --file" in ended.err
