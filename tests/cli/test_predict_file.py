"""Answers to a file of inputs are kept as they come, and a run that was stopped goes on."""

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

from dspy_toolkit.cli.predict import answers
from dspy_toolkit.cli.predict_file import PART, write_answers
from dspy_toolkit.errors import DatasetError, EngineFailed
from dspy_toolkit.lm import root_error
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.engines import own_engines
from tests.lm.openai_server import OpenAIServer
from tests.optimizers.toys import field_in

ROOT = Path(__file__).parents[2]
ROWS = [{"text": f"thing {number}"} for number in range(20)]


@pytest.fixture
def loaded(questions: Path, home: Settings) -> LoadedProgram:
    return load_program(home, str(questions))


def write(loaded: LoadedProgram, rows: list[dict[str, str]], connection: Any, threads: int, to: Path) -> int:
    def ask(left: list[dict[str, Any]]) -> Any:
        return answers(loaded, left, connection, threads)

    return write_answers(loaded, rows, connection.model, ask, to, threads=threads)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_was_stopped_goes_on(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    to, broken = tmp_path / "answers.jsonl", [True]

    def reply(request: Any) -> Any:
        number = int(request.messages[-1].content.partition("thing ")[2].split()[0])
        if number == 13 and broken[0]:
            return EngineFailed("It broke.")
        return {"label": "number" if number % 2 else "person"}

    connection = fake_connection(reply, home, model="mlx/fake@resumes")
    with pytest.raises(Exception) as failed:
        write(loaded, ROWS, connection, 2, to)
    assert isinstance(root_error(failed.value), EngineFailed)
    kept = lines(to)
    assert len(kept) == PART * 2 and kept == [{"label": "number" if at % 2 else "person"} for at in range(len(kept))]
    broken[0] = False
    asked = len(fake_engine(connection).requests)
    assert write(loaded, ROWS, connection, 2, to) == 0
    assert lines(to) == [{"label": "number" if at % 2 else "person"} for at in range(20)]
    # None that was kept was asked again; some that were answered after the last part may be known to the cache.
    again = [request.messages[-1].content for request in fake_engine(connection).requests[asked:]]
    assert not any(f"thing {at}\n" in content for content in again for at in range(len(kept)))
    before = to.read_bytes()
    assert write(loaded, ROWS, connection, 2, to) == 0
    assert to.read_bytes() == before


def test_a_reply_that_cannot_be_read_has_its_line(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    connection = fake_connection(lambda request: "nothing", home, check_grammar=False)
    assert write(loaded, ROWS[:3], connection, 2, tmp_path / "a") == 3
    assert all(set(line) == {"error"} for line in lines(tmp_path / "a"))
    assert write(loaded, ROWS[:3], connection, 2, tmp_path / "a") == 3


def test_answers_of_another_run_are_not_mixed(loaded: LoadedProgram, home: Settings, tmp_path: Path) -> None:
    to = tmp_path / "a"
    connection = fake_connection(lambda request: {"label": "person"}, home)
    write(loaded, ROWS[:3], connection, 2, to)
    before = to.read_bytes()
    with pytest.raises(DatasetError, match="differs in inputs"):
        write(loaded, ROWS[:4], connection, 2, to)
    with pytest.raises(DatasetError, match="differs in model"):
        write(loaded, ROWS[:3], fake_connection(lambda request: {"label": "person"}, home), 2, to)
    assert to.read_bytes() == before
    (tmp_path / "theirs").write_text("{}\n")
    with pytest.raises(DatasetError, match="does not say what it is"):
        write(loaded, ROWS[:3], connection, 2, tmp_path / "theirs")


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
