"""The honest peer answers as the engine does: same grammar, same greedy tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lm.__main__ import plan
from benchmarks.lm.expert import ExpertSystem, _beginning
from benchmarks.lm.peers import Place
from benchmarks.lm.systems import ABLATION
from benchmarks.lm.workloads import make_program, messages_of, read_reply, signature_of
from dspy_toolkit.lm.grammar import signature_grammar
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.protocol import TextEngine, make_request


@pytest.fixture
def expert(model_home: Path, tmp_path: Path) -> Iterator[ExpertSystem]:
    weights = find_weights("mlx/smollm2-135m", model_home)
    folder = tmp_path / "float32"
    subprocess.run([sys.executable, "-m", "benchmarks.lm.float32", str(weights.folder), str(folder)], check=True)
    system = ExpertSystem(Place(model_home, "mlx/smollm2-135m", folder, None, 1, tmp_path / "log"))
    yield system
    system.close()


@pytest.mark.system
def test_replies_keep_to_the_grammar_and_share_what_they_begin_with(expert: ExpertSystem, engine: TextEngine) -> None:
    program = make_program("classify", "salt")
    signature = signature_of(program)
    prompts = [messages_of(program, f"Make the model {word}.") for word in ("small", "fast", "draw cats")]
    jobs = [expert.submit(prompt, 20, signature) for prompt in prompts]
    answers = [job.future.result(120) for job in jobs]
    grammar = signature_grammar(signature)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert read_reply(program, answer.text) is not None, answer
        ours = engine.submit(make_request(messages=prompt, max_tokens=20, grammar=grammar)).result(60)
        assert ours.text == answer.text
    again = list(expert.stream(prompts[0], 20, signature))
    assert "".join(again) in answers[0].text
    assert len(expert._kept) >= 1


def test_what_is_run() -> None:
    assert _beginning([[1, 2, 3], [1, 2], [1, 2, 4]]) == [1, 2]
    assert not set(plan([], [])) & set(ABLATION)
    chosen = plan(["json"], ["engine", *ABLATION])
    assert [workload.name for workload in chosen["engine-prefix"]] == ["json"]
