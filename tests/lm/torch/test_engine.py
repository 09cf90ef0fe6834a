"""The torch engine: the same weights, the same greedy tokens as MLX, and what it does when something fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import DeadlineExceeded, EngineFailed, ModelError, ModelTooLarge, RequestRefused
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.torch.engine import TorchEngine
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import ask, needs_torch, send, settled, turns

PROMPTS = ["What is the capital of France?", "Name a color.", "Count to five.", "Write one sentence about the sea."]
TIE = 1e-2
"""Logarithms of probabilities nearer than this change places with the order of additions."""


def start(home: Path, model: str = "mlx/smollm2-135m", **limits: Any) -> TorchEngine:
    needs_torch()
    return TorchEngine(find_weights(model, home), LMSettings(lease="share", **limits), device="cpu")


@pytest.fixture(scope="module")
def torch_engine(model_home: Path) -> Iterator[TorchEngine]:
    engine = start(model_home)
    yield engine
    engine.close()


def test_the_greedy_tokens_of_mlx(torch_engine: TorchEngine, engine: Engine) -> None:
    for prompt in PROMPTS:
        theirs = send(engine, turns(prompt)).result(120)
        ours = send(torch_engine, turns(prompt), logprobs=2).result(120)
        if ours.text != theirs.text:
            assert ours.logprobs is not None
            gaps = [token.top[0][1] - token.top[1][1] for token in ours.logprobs]
            print(f"{ours.text!r} is not {theirs.text!r}; the best two are {min(gaps):.2g} apart")
            assert min(gaps) < TIE
        assert ours.prompt_tokens == theirs.prompt_tokens
    assert "Paris" in send(torch_engine, turns(PROMPTS[0])).result(60).text


def test_a_grammar_of_forced_and_free_tokens(torch_engine: TorchEngine) -> None:
    grammar = 'start: "the answer is " ("red" | "blue") ", and no other"'
    pending = send(torch_engine, turns("Pick."), grammar=grammar, max_tokens=40, logprobs=1)
    reply = pending.result(60)
    assert reply.text in {f"the answer is {color}, and no other" for color in ("red", "blue")}
    assert 0 < reply.forced_tokens < reply.completion_tokens
    assert reply.logprobs is not None and len(reply.logprobs) == reply.completion_tokens
    assert reply.logprobs[0].logprob == 0
    cut = send(torch_engine, turns("x"), grammar='start: "only this and no more"', max_tokens=2).result(60)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 2)


def test_the_label_scores_of_mlx(torch_engine: TorchEngine, engine: Engine) -> None:
    labels = ("billing", "billing dispute", "technical support", "12")
    for suffix in ("", "\n\n[[ ## completed ## ]]"):
        scores = {"prefix": "[[ ## label ## ]]\n", "labels": labels, "suffix": suffix}
        ours, theirs = (
            send(each, turns("My invoice is wrong."), label_scores=scores).result(120)
            for each in (torch_engine, engine)
        )
        for own, other in zip(ours.label_logprobs or (), theirs.label_logprobs or (), strict=True):
            assert (own.label, own.tokens) == (other.label, other.tokens)
            assert own.logprob == pytest.approx(other.logprob, abs=TIE)
        assert ours.completion_tokens == theirs.completion_tokens
    assert "Paris" in send(torch_engine, turns(PROMPTS[0])).result(60).text  # the cache was left as it says


def test_a_shared_beginning_is_read_once_and_changes_nothing(torch_engine: TorchEngine) -> None:
    system = "You answer in one word. " * 12
    fresh = [send(torch_engine, turns(f"{n}?", system)).result(60) for n in ("Two and two", "The sky")]
    assert fresh[1].reused_tokens > 50
    send(torch_engine, turns("Something else entirely.")).result(60)
    again = send(torch_engine, turns("The sky?", system)).result(60)
    assert again.reused_tokens < fresh[1].reused_tokens
    assert again.text == fresh[1].text
    repeated = send(torch_engine, turns("The sky?", system)).result(60)
    assert repeated.text == again.text
    assert repeated.reused_tokens == repeated.prompt_tokens - 1


def test_seeds_and_times(torch_engine: TorchEngine) -> None:
    message = turns("Invent a name for a boat.")
    said = {send(torch_engine, message, temperature=1.0, seed=7).result(60).text for _ in range(2)}
    assert len(said) == 1
    assert {send(torch_engine, message, temperature=1.5, seed=n).result(60).text for n in (8, 9)} != said
    reply = send(torch_engine, message).result(60)
    assert 0 < reply.prefill_seconds + reply.decode_seconds <= reply.seconds
    counts = torch_engine.stats()
    assert counts.steps > 0 and counts.computed_tokens > 0 and counts.model_seconds > 0 and counts.prefix_bytes > 0


def test_tools_without_a_parser_are_refused(torch_engine: TorchEngine) -> None:
    with pytest.raises(RequestRefused, match="tools"):
        torch_engine.submit(ask(tools=({"type": "function", "function": {"name": "look"}},)))


def test_an_exception_ends_one_request_and_a_dead_thread_is_started_again(
    model_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start(model_home)
    errors: list[BaseException] = []
    real = TorchEngine._generate

    def generate(self: TorchEngine, *arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return real(self, *arguments)

    monkeypatch.setattr(TorchEngine, "_generate", generate)
    errors.append(ValueError("matrix on fire"))
    sent = [send(engine, turns("Hello!"), max_tokens=2) for _ in range(2)]
    with pytest.raises(EngineFailed, match="ValueError: matrix on fire"):
        sent[0].result(120)
    assert sent[1].result(60).text
    thread = engine._thread
    assert thread is not None
    running = send(engine, turns("Tell a story."), max_tokens=1000)
    next(iter(running))
    sent = [send(engine, turns("Hello!"), max_tokens=2) for _ in range(3)]
    errors.append(SystemExit("killed"))
    running.cancel()
    for pending in sent:
        with pytest.raises(EngineFailed, match="killed"):
            pending.result(60)
    assert send(engine, turns("Hello!"), max_tokens=2).result(120).text
    assert engine._thread is not thread and not thread.is_alive()
    assert settled(engine).failed == 4
    assert "failed" in caplog.text
    engine.close()


def test_waiting_requests_meet_their_deadline(torch_engine: TorchEngine) -> None:
    running = send(torch_engine, turns("Tell a story."), max_tokens=1000)
    next(iter(running))
    with pytest.raises(DeadlineExceeded):
        send(torch_engine, turns("x"), deadline_seconds=0.1).result(20)
    assert not running.future.done()
    running.cancel()
    settled(torch_engine)


def test_what_cannot_be_loaded(model_home: Path, tmp_path: Path) -> None:
    engine = start(model_home, memory_limit_gb=0.5)
    with pytest.raises(ModelTooLarge, match=r"in torch on this machine's cpu, and 0\.5 GB are allowed"):
        send(engine, turns("x")).result(60)
    engine.close()
    folder = tmp_path / "a model"
    shutil.copytree(model_home / "models" / "smollm2-135m", folder)
    config = json.loads((folder / "config.json").read_text())
    for change, told in (
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"num_hidden_layers": 31}, "parameters are missing"),
        ({"quantization": {**config["quantization"], "mode": "mxfp4"}}, "mxfp4"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        engine = start(model_home, f"mlx/{folder}")
        with pytest.raises(ModelError, match=f"torch cannot load .*{told}"):
            send(engine, turns("x")).result(120)
        engine.close()


def test_without_torch_the_next_command_is_named(model_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspy_toolkit.lm.torch.engine.torch_installed", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'dspy-toolkit\[torch\]'"):
        TorchEngine(find_weights("mlx/smollm2-135m", model_home), LMSettings())


# The weights.


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_quantized_weights_are_expanded_bit_for_bit_as_mlx_does_it(bits: int, kind: str, tmp_path: Path) -> None:
    needs_torch()
    import mlx.core as mx
    from safetensors.torch import load_file

    from dspy_toolkit.lm.torch.weights import expand_affine

    with mx.stream(mx.cpu):
        packed, scales, offsets = mx.quantize(
            mx.random.normal((16, 256)).astype(getattr(mx, kind)), group_size=64, bits=bits
        )
        theirs = mx.dequantize(packed, scales, offsets, group_size=64, bits=bits)
        arrays = {"packed": packed, "scales": scales, "offsets": offsets, "theirs": theirs}
        mx.save_safetensors(str(tmp_path / "arrays.safetensors"), arrays)
    read = load_file(tmp_path / "arrays.safetensors")
    ours = expand_affine(read["packed"], read["scales"], read["offsets"], bits)
    assert ours.dtype == read["theirs"].dtype and bool((ours == read["theirs"]).all())


def test_a_folder_in_hugging_faces_format(model_home: Path, tmp_path: Path) -> None:
    """Written by transformers from a tiny model of another architecture, with the embedded model's tokenizer."""
    needs_torch()
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=49152,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=2,
        )
    )
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_home / "models" / "smollm2-135m" / name, tmp_path / name)
    engine = start(model_home, f"mlx/{tmp_path}")
    reply = send(engine, turns("Hello!"), max_tokens=8, logprobs=0).result(120)
    tokens = engine._tokenizer.encode_chat(ask("Hello!").messages)
    expected = model.generate(torch.tensor([tokens]), max_new_tokens=8, do_sample=False)[0, len(tokens) :].tolist()
    assert reply.text == engine._tokenizer.decode([token for token in expected if token != 2])
    engine.close()


def test_an_architecture_that_only_transformers_knows_falls_back_on_torch(
    model_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needs_torch()
    import dspy
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    from dspy_toolkit.lm import connect
    from dspy_toolkit.lm.litellm.provider import find_chain, withdraw
    from dspy_toolkit.settings import load_settings

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global"], 2]],
        "num_heads": 4,
        "vocab_size": 49152,
        "max_position_embeddings": 1024,
        "eos_token_id": 2,
    }
    GPTNeoForCausalLM(GPTNeoConfig(**shape)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_home / "models" / "smollm2-135m" / name, tmp_path / name)
    settings = load_settings(home=model_home, lm={"model": f"mlx/{tmp_path}", "lease": "share"})
    connection = connect(settings)
    program = dspy.Predict("question -> answer: bool")
    with connection.context(connection.lm.copy(cache=False)):
        assert program(question="Is water wet?").answer in (True, False)
    entry = connection.lm.history[0] if connection.lm.history else program.history[0]
    assert entry["response_model"] == f"torch/{connection.model.removeprefix('mlx/')}"
    assert "torch/" in caplog.text and "from now on" in caplog.text
    find_chain(connection.model).close()
    withdraw(connection.model)


def test_torch_outright(model_home: Path) -> None:
    needs_torch()
    from dspy_toolkit.lm.connection import _backends
    from dspy_toolkit.settings import load_settings

    weights = find_weights("mlx/smollm2-135m", model_home)
    (backend,) = _backends(weights, load_settings(home=model_home, lm={"backend": "torch", "lease": "share"}))
    engine = backend.engine()  # type: ignore[attr-defined]
    assert isinstance(engine, TorchEngine)
    assert "Paris" in send(engine, turns(PROMPTS[0])).result(120).text
    backend.close()
    assert engine.closed
