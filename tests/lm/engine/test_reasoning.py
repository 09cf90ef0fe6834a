"""Replies with reasoning on the engine: a budget for it, a grammar behind it, stop strings, gpt-oss's channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm import harmony
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import ask

GRAMMAR = 'start: "yes" | "no"'
HARMONY = """{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}
{%- for message in messages %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
QWEN = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""

Open = Callable[[Path], Engine]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    made: list[Engine] = []

    def open_engine(folder: Path) -> Engine:
        made.append(Engine(find_weights(f"mlx/{folder}", tmp_path), LMSettings(lease="share")))
        return made[-1]

    yield open_engine
    for engine in made:
        engine.close()


def prompt_of(engine: Engine, request: GenerationRequest) -> str:
    tokenizer = engine._tokenizer
    return tokenizer._tokenizer.decode(tokenizer.encode_request(request))


def test_gpt_oss(architecture: Callable[..., Path], opened: Open) -> None:
    engine = opened(architecture("gpt_oss", chat_template=HARMONY, special=harmony.MARKS))
    assert engine.has_thinking
    assert engine.has_tool_parser
    assert prompt_of(engine, ask("Hi")).endswith("<|start|>assistant")
    assert "Reasoning: high" in prompt_of(engine, ask("Hi", reasoning_effort="high"))
    for at_once in (ask("Hi", thinking=False), ask("Hi", grammar=GRAMMAR)):
        assert prompt_of(engine, at_once).endswith("<|channel|>final<|message|>")
    reply = engine.submit(ask("Hi", grammar=GRAMMAR)).result(60)
    assert (reply.text in ("yes", "no"), reply.reasoning) == (True, None)
    requests = [ask(f"Is it {n}?", grammar=GRAMMAR, thinking_budget=12, max_tokens=64) for n in range(3)]
    for pending in [engine.submit(request) for request in requests]:
        reply = pending.result(60)
        assert reply.text in ("yes", "no")
        assert reply.reasoning
        assert reply.completion_tokens < 40


def test_qwen3_thinks_within_its_budget_and_then_keeps_to_the_grammar(
    architecture: Callable[..., Path], opened: Open
) -> None:
    engine = opened(architecture("qwen3", chat_template=QWEN, marks=("<think>", "</think>")))
    plain = [ask(f"Is it {n}?", max_tokens=20) for n in range(2)]
    requests = [ask(f"Is it {n}?", grammar=GRAMMAR, thinking_budget=8 + n, max_tokens=64) for n in range(4)]
    pending = [engine.submit(request) for request in (*requests, *plain)]
    for request, each in zip(requests, pending[:4], strict=True):
        assert prompt_of(engine, request).endswith("<think>\n")
        reply = each.result(60)
        assert reply.text in ("yes", "no")
        assert reply.reasoning
        assert reply.completion_tokens <= request.thinking_budget + 6
    assert all(each.result(60).completion_tokens <= 20 for each in pending[4:])
    free = engine.submit(ask("Is it?", thinking_budget=5, max_tokens=16)).result(60)
    assert free.reasoning
    assert free.completion_tokens == 16


def test_a_model_that_ends_its_reasoning_by_itself(tiny: Callable[..., Path], opened: Open) -> None:
    engine = opened(tiny(template="opened", says=("Hm. ", "A sum. ", "</think>", "It is 4.")))
    reply = engine.submit(ask("?", grammar=GRAMMAR, thinking_budget=30, max_tokens=60)).result(60)
    assert reply.reasoning == "Hm. A sum."
    assert reply.text in ("yes", "no")
    assert engine.submit(ask("?", thinking_budget=1, max_tokens=60)).result(60).reasoning == "Hm."
    cut = engine.submit(ask("?", thinking_budget=3, max_tokens=4)).result(60)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 4)


def test_stop_strings_end_the_answer_and_not_the_reasoning(tiny: Callable[..., Path], opened: Open) -> None:
    engine = opened(
        tiny(template="thinking", says=("<think>", "I STOP. ", "</think>", "It is 4. ", "Yes. STOP", " here."))
    )
    reply = engine.submit(ask("?", stop=("STOP",), logprobs=0, max_tokens=60)).result(60)
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("It is 4. Yes. ", "I STOP.", "stop")
    assert reply.completion_tokens == len(reply.logprobs or ()) == 5
    streamed = engine.submit(ask("?", stop=("STOP",), max_tokens=60))
    assert "".join(streamed) == "It is 4. Yes. "
    begins = engine.submit(ask("?", stop=("Yes",), logprobs=0, max_tokens=60)).result(60)
    assert (begins.text, begins.completion_tokens, len(begins.logprobs or ())) == ("It is 4. ", 4, 4)


def test_what_cannot_be_asked_for(tiny: Callable[..., Path], opened: Open) -> None:
    engine = opened(tiny())
    with pytest.raises(RequestRefused, match="this model has none"):
        engine.submit(ask(thinking_budget=5))
    with pytest.raises(RequestRefused, match="leaves nothing for the answer"):
        ask(thinking_budget=5, max_tokens=5)
    with pytest.raises(RequestRefused, match="thinking is False"):
        ask(thinking_budget=5, thinking=False)
    with pytest.raises(RequestRefused, match="logit_bias names the token 999999"):
        engine.submit(ask(logit_bias=((999999, 1.0),)))
