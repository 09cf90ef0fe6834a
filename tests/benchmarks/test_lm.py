"""The benchmark's building blocks on tiny sizes, without peers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lm import worker
from benchmarks.lm.__main__ import SYSTEMS, WIDTH, plan
from benchmarks.lm.asking import Setting, rows_for
from benchmarks.lm.floor import PrefillWork, Shape, free_tokens, least_seconds, prefill_work, shape_of
from benchmarks.lm.peers import Place
from benchmarks.lm.report import figure, tables, times
from benchmarks.lm.servers import Server
from benchmarks.lm.systems import EngineSystem, missing
from benchmarks.lm.workloads import (
    WORKLOADS,
    find_workload,
    is_right,
    make_program,
    messages_of,
    read_reply,
    signature_of,
)
from benchmarks.throughput import Rates
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.testing import fake_connection, format_reply

CONFIGURATION = {
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.1,
    "target_modules": ["q_proj"],
    "bias": "none",
    "learning_rate": 0.0002,
    "batch_size": 2,
    "num_epochs": 3,
    "optimizer": "adamw",
    "max_sequence_length": 512,
}
ROWS = [{"request": f"teach my model to rhyme, verse {n}", "project": ["lora", "clip"][n % 2]} for n in range(160)]


def answer(request: GenerationRequest) -> dict[str, Any]:
    system = request.messages[0].content
    if "configuration" in system:
        return {"configuration": CONFIGURATION}
    return {"reasoning": "A text model.", "project": "lora"} if "reasoning" in system else {"project": "lora"}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[EngineSystem]:
    found = EngineSystem(fake_connection(answer, tmp_path))
    yield found
    found.engine.close()


def order(tmp_path: Path, *workloads: str, system: str = "engine") -> dict[str, Any]:
    place = {"home": str(tmp_path), "model": "mlx/fake", "folder": str(tmp_path), "gguf": None, "threads": 2}
    return {
        "system": system,
        "place": place | {"log": str(tmp_path / "log")},
        "workloads": list(workloads),
        "rates": {"flops": 1e11, "bytes": 1e10},
        "shape": None,
        "train": ROWS[:80],
        "val": ROWS[80:],
        "demos": ROWS[:2],
        "scale": 0.1,
    }


def test_a_worker_measures_a_burst_both_ways_and_a_stream_under_load(
    system: EngineSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "start", lambda *_: system)
    rows: list[dict[str, Any]] = []
    worker.work(order(tmp_path, "classify-warm", "few-shot", "thought", "json", "width", "first-token"), rows.append)
    assert not [row for row in rows if row["measure"] == "failed"]
    found = {(row["workload"], row["way"], row["measure"]): row["value"] for row in rows}
    for workload in ("classify-warm", "few-shot", "thought", "json"):
        for way in ("dspy", "native"):
            assert found[workload, way, "rate"] > 0
            assert found[workload, way, "valid"] == 100
            assert found[workload, way, "tokens"] > 0
    assert found["json", "native", "right"] == found["json", "dspy", "right"] == 100
    # Of the five rows asked about, every second is about lora.
    assert found["classify-warm", "native", "right"] == found["classify-warm", "dspy", "right"] == 60
    assert found["first-token", "dspy", "first_token"] > 0
    assert found["first-token", "native", "first_token"] > 0
    assert found["width", "native", "step_overhead"] is None, "the fake counts no steps"


def test_a_worker_compiles_the_router(system: EngineSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "start", lambda *_: system)
    rows: list[dict[str, Any]] = []
    worker.work(order(tmp_path, "bootstrap"), rows.append)
    found = {row["measure"]: row["value"] for row in rows}
    assert found["seconds"] > 0
    assert found["rate"] > 0
    assert 0 < found["right"] <= 100


def test_a_workload_that_fails_is_a_row_and_the_next_one_runs(
    system: EngineSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "start", lambda *_: system)
    rows: list[dict[str, Any]] = []
    few = order(tmp_path, "json", "classify-cold")
    few["train"], few["val"] = [row for row in ROWS if row["project"] == "clip"], []
    worker.work(few, rows.append)
    assert [row["measure"] for row in rows[:2]] == ["failed", "failed"]
    assert "Lower --scale" in rows[0]["note"]
    assert rows[2]["workload"] == "classify-cold"
    assert rows[2]["value"] > 0


def test_requests_that_fail_are_counted_and_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: GenerationRequest) -> Any:
        return RuntimeError("the model is gone")

    system = EngineSystem(fake_connection(fail, tmp_path))
    monkeypatch.setattr(worker, "start", lambda *_: system)
    rows: list[dict[str, Any]] = []
    worker.work(order(tmp_path, "classify-cold"), rows.append)
    assert [(row["measure"], row["value"]) for row in rows] == [("rate", None), ("rate", None)]
    assert all("5 of 5 failed" in row["note"] for row in rows)


def test_every_system_gets_the_same_prompts_and_few_requests_where_more_say_nothing() -> None:
    setting = Setting("generate", None, Rates(flops=1, bytes=1), None, ROWS[:80], ROWS[80:], ROWS[80:82])  # pyright: ignore[reportArgumentType]
    assert setting.requests(find_workload("few-shot")) == 4
    rows = rows_for(find_workload("few-shot"), setting, 10)
    assert rows == ROWS[82:92], "demonstrations are left out"
    assert rows_for(find_workload("few-shot"), setting, 4) == rows[:4]
    shots = make_program("classify", "few-shot dspy", ROWS[:3])
    assert len(messages_of(shots, "hello")) == 1 + 2 * 3 + 1
    one, other = (messages_of(make_program("classify", salt), "hello")[0]["content"] for salt in ("one", "two"))
    assert one != other


def test_a_reply_is_read_in_dspys_format_and_a_configuration_also_alone() -> None:
    classify, configure = make_program("classify", ""), make_program("configure", "")
    right = read_reply(classify, format_reply({"project": "lora"}))
    assert is_right(right, {"project": "lora"})
    assert not is_right(right, {"project": "clip"})
    assert read_reply(classify, "lora, I think") is None
    assert is_right(read_reply(configure, format_reply({"configuration": CONFIGURATION})), {})
    assert is_right(read_reply(configure, f"Sure: {json.dumps(CONFIGURATION)}"), {})
    assert not is_right(read_reply(configure, json.dumps(CONFIGURATION | {"rank": -1})), {})
    assert not is_right(read_reply(configure, "no"), {})


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=6)


@given(PROMPTS, PROMPTS)
def test_what_must_be_read_is_the_tree_of_the_prompts_without_what_is_known(
    prompts: list[list[int]], known: list[list[int]]
) -> None:
    def beginnings(these: list[list[int]]) -> set[tuple[int, ...]]:
        return {tuple(prompt[: end + 1]) for prompt in these for end in range(len(prompt))}

    new = beginnings(prompts) - beginnings(known)
    assert prefill_work(prompts, known) == PrefillWork(len(new), sum(map(len, new)))


def test_the_floor_is_operations_or_bytes_whichever_takes_longer(model_home: Path) -> None:
    config = json.loads((model_home / "models" / "smollm2-135m" / "config.json").read_text())
    shape = shape_of(config)
    assert shape is not None
    # 134.5 million parameters, of which norms are not counted.
    assert shape.weight_bytes / 4 == pytest.approx(134.5e6, rel=0.001)
    assert shape.kv_bytes == 30 * 2 * 192 * 4
    assert shape_of({"hidden_size": 8}) is None
    assert shape_of(config | {"num_experts": 8}) is None
    plain = Shape(block_flops=100, head_flops=10, pair_flops=0, weight_bytes=1000, kv_bytes=0)
    work, one = PrefillWork(50, 0), {"primed": True, "context": 10.0}
    # 16 replies: 50 tokens and 16 decisions, then two steps of 16 rows.
    computing = least_seconds(plain, Rates(flops=1, bytes=1e9), work, 16, 3, **one)
    assert computing == pytest.approx(50 * 100 + 16 * 10 + 2 * 16 * 110)
    reading_weights = least_seconds(plain, Rates(flops=1e12, bytes=1), work, 17, 3, **one)
    assert reading_weights == pytest.approx(2 * 1000 + 2 * 2 * 1000)
    cold = least_seconds(plain, Rates(flops=1e12, bytes=1), work, 17, 3, primed=False, context=10.0)
    assert cold == reading_weights + 1000


def test_only_the_tokens_that_a_grammar_leaves_open_are_counted(model_home: Path) -> None:
    from dspy_toolkit.lm.grammar import signature_grammar
    from dspy_toolkit.lm.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model_home / "models" / "smollm2-135m", "")
    label = signature_grammar(signature_of(make_program("classify", "")))
    thought = signature_grammar(signature_of(make_program("explain", "")))
    assert label and thought
    text = format_reply({"project": "compression"})
    assert free_tokens(tokenizer.matcher(label), tokenizer._tokenizer, text) == 1
    text = format_reply({"reasoning": "It says that the model is slow.", "project": "compression"})
    free = free_tokens(tokenizer.matcher(thought), tokenizer._tokenizer, text)
    assert len(tokenizer._tokenizer.encode("It says that the model is slow.")) < free < 16


def test_the_table_marks_goals_and_the_figure_is_drawn() -> None:
    from rich.console import Console

    rows = []
    for workload in WORKLOADS:
        for way in workload.ways:
            for place, name in enumerate(SYSTEMS):
                row = {"workload": workload.name, "way": way, "system": name, "unit": "", "note": ""}
                for measure in ("rate", "first_token", "seconds", "right", "model_share"):
                    rows.append(row | {"measure": measure, "value": 20.0 / (1 + place) ** 2})
    rows.append(rows[0] | {"measure": "floor", "way": "native", "value": 40.0})
    rows.append(
        rows[0] | {"workload": "json", "way": "dspy", "system": "llama.cpp", "measure": "failed", "value": None}
    )
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    for table in tables(rows, SYSTEMS):
        console.print(table)
    text = console.export_text()
    assert "engine 4.00× (✗ ≥ 15)" in text
    assert "engine 16.0× (✓ ≥ 4)" in text
    assert "engine at 50 %" in text
    assert times(rows, find_workload("classify-cold"), "dspy", "generate") == 4
    # Of seconds fewer are better.
    assert times(rows, find_workload("first-token"), "native", "llama.cpp") == 1 / 16
    assert figure(rows, SYSTEMS, "this machine").startswith(b"\x89PNG")
    assert figure([], (), "nothing").startswith(b"\x89PNG")


def test_what_is_not_affordable_runs_when_it_is_named() -> None:
    assert "mipro" not in [workload.name for workload in plan([], [])["llama.cpp"]]
    assert plan(["mipro"], ["llama.cpp"]) == {"llama.cpp": [find_workload("mipro")]}
    assert list(plan([], ["engine"])) == ["engine"]
    assert plan([], [])["engine"] == list(WORKLOADS)


def test_a_missing_peer_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "uv pip install --group peers" in (missing("llama.cpp") or "")
    assert "compiles C++" in (missing("llama.cpp") or "")
    assert missing("engine") is None


SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = "schema" if "response_format" in asked else asked["messages"][-1]["content"]
        self.send_response(200)
        self.end_headers()
        if asked.get("stream"):
            for piece in text:
                self.wfile.write(f"data: {json.dumps({'choices': [{'delta': {'content': piece}}]})}\\n\\n".encode())
            self.wfile.write(b"data: [DONE]\\n\\n")
        else:
            answer = {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": len(text)}}
            self.wfile.write(json.dumps(answer).encode())

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_server_is_started_asked_streamed_and_ended(tmp_path: Path) -> None:
    server = Server([sys.executable, "-c", SERVER], tmp_path / "log", takes_schema=True)
    try:
        said = [{"role": "user", "content": "hello"}]
        classify, configure = (signature_of(make_program(kind, "")) for kind in ("classify", "configure"))
        assert server.ask(said, 8, classify) == ("hello", 5)
        assert server.ask(said, 8, configure).text == "schema"
        assert list(server.stream(said, 8, classify)) == list("hello")
        assert server.lm(8)[0].kwargs["api_base"] == server.address
    finally:
        server.close()
    assert server._process.poll() is not None


def test_a_server_that_does_not_start_gives_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with code 3; its last words: no such model"):
        Server([sys.executable, "-c", "print('no such model'); exit(3)"], tmp_path / "log", takes_schema=False)


def test_an_order_survives_the_way_to_its_worker(tmp_path: Path) -> None:
    given = json.loads(json.dumps(order(tmp_path, "json")))
    setting = worker.read_order(given)
    assert setting.place == Place(tmp_path, "mlx/fake", tmp_path, None, 2, tmp_path / "log")
    assert setting.val == ROWS[80:]
