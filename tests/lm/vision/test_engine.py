"""The vision engine over mlx-vlm: the tokens of mlx-vlm's own `generate`, images that tell, and what the other engines do.

These tests need the extra `vision`; `tests/system/test_vision.py` runs them with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import litellm
import numpy as np
import pytest

from dspy_toolkit.errors import DeadlineExceeded, EngineFailed, ModelError, ModelTooLarge, PromptTooLong, RequestRefused
from dspy_toolkit.lm import close_engines, connect, root_error
from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.litellm.provider import find_engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.protocol import GenerationRequest, Reply, make_request
from dspy_toolkit.lm.vision.images import take_image
from dspy_toolkit.lm.vision.prompt import VisionTokenizer
from dspy_toolkit.lm.vision.reading import Reading
from dspy_toolkit.settings import LMSettings, load_settings
from tests.lm.asking import settled, turns
from tests.lm.chains import said
from tests.lm.vision.tiny_vision import Kind, needs_vision, picture, uri, write_vision

RED, BLUE = picture(220, 20, 20), picture(20, 20, 220, size=(64, 64))
KINDS: tuple[Kind, ...] = ("qwen2_vl", "smolvlm")
COLOURS = ("red", "green", "blue", "dark blue")


@pytest.fixture(scope="session")
def folders(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    needs_vision()
    parent = tmp_path_factory.mktemp("vision")
    source = model_home / "models" / "smollm2-135m"
    return {kind: write_vision(parent / kind, kind, tokenizer=source) for kind in KINDS}


def start(home: Path, folder: Path, **limits: Any) -> Any:
    from dspy_toolkit.lm.vision.engine import VisionEngine

    return VisionEngine(find_weights(f"mlx/{folder}", home), LMSettings(lease="share", **limits))


@pytest.fixture(scope="module", params=KINDS)
def seeing(request: pytest.FixtureRequest, model_home: Path, folders: dict[str, Path]) -> Iterator[Any]:
    engine = start(model_home, folders[request.param])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def one(model_home: Path, folders: dict[str, Path]) -> Iterator[Any]:
    """Where one architecture is enough."""
    engine = start(model_home, folders["qwen2_vl"])
    yield engine
    engine.close()


def asking(*files: bytes, text: str = "What colour is it?", **fields: Any) -> GenerationRequest:
    """Of a user who shows images and then says something."""
    images = [take_image(uri(file), 0) for file in files]
    message = {"role": "user", "content": text, "images": images}
    return make_request(**{"messages": [message], "max_tokens": 10, **fields})


def answer(engine: Any, *files: bytes, **fields: Any) -> Reply:
    return engine.submit(asking(*files, **fields)).result(120)


# Beside mlx-vlm.


def theirs(folder: Path, files: list[bytes], text: str) -> tuple[str, int]:
    """(greedy reply, prompt tokens) of mlx-vlm's own functions, on a thread of their own."""
    from io import BytesIO

    import mlx_vlm
    from PIL import Image

    from tests.lm.tiny import on_own_thread

    def run() -> tuple[str, int]:
        model, processor = mlx_vlm.load(str(folder), trust_remote_code=False)
        config = mlx_vlm.utils.load_config(folder)
        content = [*({"type": "image"} for _ in files), {"type": "text", "text": text}]
        prompt = mlx_vlm.apply_chat_template(
            processor, config, [{"role": "user", "content": content}], num_images=len(files)
        )
        images = [Image.open(BytesIO(file)) for file in files]
        made = mlx_vlm.generate(
            model, processor, prompt, images, max_tokens=10, temperature=0, skip_special_tokens=True, verbose=False
        )
        return made.text, made.prompt_tokens

    return on_own_thread(run)


@pytest.mark.parametrize("files", [[RED], [BLUE, RED], []], ids=["one", "two", "none"])
def test_the_greedy_tokens_of_mlx_vlm(seeing: Any, files: list[bytes]) -> None:
    ours = answer(seeing, *files)
    text, size = theirs(seeing._weights.folder, files, "What colour is it?")
    assert ours.prompt_tokens == size
    assert ours.text == text and ours.completion_tokens > 3


def test_two_images_are_told_apart(seeing: Any) -> None:
    def chances(*files: bytes) -> list[tuple[str, float]]:
        found = answer(seeing, *files, max_tokens=1, logprobs=20).logprobs
        assert found is not None
        return list(found[0].top)

    assert chances(RED) == chances(RED) != chances(BLUE)
    assert chances(RED, BLUE) != chances(BLUE, RED)


def test_an_image_stands_where_the_message_has_it(seeing: Any) -> None:
    def read(at: int) -> list[Any]:
        image = take_image(uri(RED), at)
        message = {"role": "user", "content": "What colour is it?", "images": [image]}
        reply = seeing.submit(make_request(messages=[message], max_tokens=1, logprobs=20)).result(60)
        return list(reply.logprobs[0].top)

    assert read(0) != read(11) != read(18) != read(0)


def test_tokens_that_are_fed_together_count_as_one_by_one(seeing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a grammar dictates is fed in one step, a prompt in chunks."""
    grammar = 'start: "the answer is " ("red" | "blue") ", and " /[a-z ]{6}/'
    whole = answer(seeing, RED, grammar=grammar, max_tokens=40, logprobs=3)
    feed = Reading.feed

    def singly(self: Reading, tokens: Any) -> np.ndarray:
        return [feed(self, [token]) for token in tokens][-1]

    monkeypatch.setattr(Reading, "feed", singly)
    monkeypatch.setattr("dspy_toolkit.lm.vision.reading.PREFILL_CHUNK", 7)
    parts = answer(seeing, RED, grammar=grammar, max_tokens=40, logprobs=3)
    assert whole.text == parts.text and whole.forced_tokens == parts.forced_tokens > 3
    for one, other in zip(whole.logprobs or (), parts.logprobs or (), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


# What every engine does.


def test_labels_are_scored_as_they_would_be_decoded(seeing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"prefix": "It is ", "labels": COLOURS, "suffix": "."}
    (trimmed, again) = (answer(seeing, RED, label_scores=scores).label_logprobs for _ in range(2))
    assert trimmed == again
    monkeypatch.setattr("mlx_vlm.models.cache.KVCache.is_trimmable", lambda self: False)
    afresh = answer(seeing, RED, label_scores=scores).label_logprobs
    for label, one, other in zip(COLOURS, trimmed, afresh, strict=True):
        assert one.label == other.label == label and one.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert len({round(each.logprob, 3) for each in trimmed}) == len(COLOURS)
    assert answer(seeing, BLUE, label_scores=scores).label_logprobs != trimmed


def test_a_grammar_seeds_stops_and_text_alone(seeing: Any) -> None:
    reply = answer(seeing, RED, grammar='start: "red" | "blue"', max_tokens=20)
    assert reply.text in ("red", "blue") and reply.finish_reason == "stop"
    drawn = {answer(seeing, RED, temperature=4.0, seed=seed).text for seed in (3, 3, 4)}
    assert len(drawn) == 2
    plain = answer(seeing)
    assert plain.prompt_tokens < answer(seeing, RED).prompt_tokens
    piece = plain.text[2:4]
    assert answer(seeing, stop=(piece,)).text == plain.text[: plain.text.index(piece)]


def test_streams_and_cancelling(one: Any) -> None:
    whole = answer(one, RED, max_tokens=12)
    pending = one.submit(asking(RED, max_tokens=12))
    pieces = list(pending)
    assert "".join(pieces) == whole.text and len(pieces) > 3
    running = one.submit(asking(RED, max_tokens=1500))
    next(iter(running))
    with pytest.raises(DeadlineExceeded):
        one.submit(asking(BLUE, deadline_seconds=0.05)).result(30)
    assert not running.future.done()
    running.cancel()
    counts = settled(one)
    assert counts.cancelled == 1 and counts.finished >= 2 and counts.model_seconds > 0
    assert answer(one, RED, max_tokens=12).text == whole.text


def test_what_is_refused(one: Any) -> None:
    with pytest.raises(RequestRefused, match="Image 2 of 2 cannot be read"):
        one.submit(asking(RED, RED[:90]))
    with pytest.raises(RequestRefused, match="not the user's"):
        one.submit(
            make_request(messages=[{"role": "system", "content": "x", "images": asking(RED).messages[0].images}])
        )
    with pytest.raises(PromptTooLong):
        one.submit(asking(RED, max_tokens=2040)).result(60)  # with the image's tokens only
    with pytest.raises(RequestRefused, match="adapter"):
        one.submit(asking(RED, adapter="01234567"))
    with pytest.raises(RequestRefused, match="embeds no text"):
        one.embed(["a"])


def test_control_tokens_that_a_text_spells_are_text(seeing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of turns and of images; the same text without them is read alike by both ways."""
    plain = answer(seeing, RED, logprobs=5)
    for spelled in ("<|im_end|>", "<image>" if seeing._tokens._config["model_type"] == "smolvlm" else "<|image_pad|>"):
        ours = seeing._tokens.prepare(asking(RED, text=f"It says {spelled} here."))["input_ids"][0].tolist()
        (token,) = seeing._tokens._tokenizer.encode(spelled, add_special_tokens=False)
        usual = seeing._tokens.prepare(asking(RED))["input_ids"][0].tolist()
        assert ours.count(token) == usual.count(token) and len(ours) > len(usual)
        assert answer(seeing, RED, text=f"It says {spelled} here.").prompt_tokens == len(ours)
        assert answer(seeing, text=f"It says {spelled} here.").prompt_tokens < len(ours)
    monkeypatch.setattr(VisionTokenizer, "_spells", lambda *_: True)
    assert answer(seeing, RED, logprobs=5).logprobs == plain.logprobs
    monkeypatch.setattr(VisionTokenizer, "_quotes", lambda *_: False)
    with pytest.raises(RequestRefused, match="spells a control token"):
        seeing.submit(asking(RED))


def test_an_exception_ends_one_request(
    one: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, thread = answer(one, RED), one._thread
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "start", lambda *_: 1 / 0)
        with pytest.raises(EngineFailed, match="ZeroDivisionError"):
            answer(one, RED)
    assert answer(one, RED).text == whole.text and one._thread is thread
    assert "failed" in caplog.text


def test_a_processor_that_refuses(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("aspect ratio")

    monkeypatch.setattr(one._tokens._processor.image_processor.__class__, "__call__", refuse)
    with pytest.raises(RequestRefused, match="processor refuses.*aspect ratio"):
        answer(one, RED)


def test_what_cannot_be_loaded(model_home: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelTooLarge, match="needs about"):
        start(model_home, folders["qwen2_vl"], memory_limit_gb=0.2)
    for path in folders["qwen2_vl"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    engine = start(model_home, tmp_path)
    with pytest.raises(ModelError, match="mlx-vlm cannot load"):
        answer(engine)
    engine.close()
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of", "vision_config": {"depth": 1}}')
    with pytest.raises(ModelError, match="mlx-vlm cannot load .*unheard-of not supported"):
        start(model_home, tmp_path)


# Through DSPy.


class Judge(dspy.Signature):
    """Look at the image."""

    image: dspy.Image = dspy.InputField()
    question: str = dspy.InputField()
    label: Literal["red", "green", "dark blue"] = dspy.OutputField()
    sure: int = dspy.OutputField()


@pytest.fixture(scope="module")
def connected(model_home: Path, folders: dict[str, Path]) -> Iterator[Any]:
    settings = load_settings(home=model_home, lm={"model": f"mlx/{folders['smolvlm']}", "lease": "share"})
    found = connect(settings)
    yield found
    find_engine(found.model).close()


@pytest.mark.parametrize("form", ["chat", "plain", "json", "xml"])
def test_a_signature_with_an_image_has_a_reply_that_parses(connected: Any, form: FormatName) -> None:
    program = dspy.Predict(Judge)
    program.format = form
    program.demos = [dspy.Example(image=dspy.Image(uri(BLUE)), question="Which colour?", label="dark blue", sure=1)]
    lm = connected.lm.copy(cache=False)
    with connected.context(lm):
        found = program(image=dspy.Image(uri(RED)), question="Which?")
        assert found.label in ("red", "green", "dark blue") and isinstance(found.sure, int)
        other = asyncio.run(program.acall(image=dspy.Image(uri(BLUE)), question="Which?"))
    assert other.label in ("red", "green", "dark blue")
    (asked, _) = lm.history or program.history
    images = [part for turn in asked["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
    assert [part["type"] for part in images].count("image_url") == 2
    assert asked["response_model"] == connected.model


def test_a_reply_is_kept_by_image(connected: Any) -> None:
    program = dspy.Predict("image: dspy.Image, question -> label: Literal['red', 'blue']")
    with connected.context():
        for file in (RED, BLUE, RED):
            program(image=dspy.Image(uri(file)), question="Which colour?")
    cached = [bool(getattr(entry["response"], "cache_hit", False)) for entry in program.history]
    assert cached == [False, False, True]


def test_an_address_elsewhere_is_refused_through_dspy(connected: Any) -> None:
    program = dspy.Predict("image: dspy.Image, question -> label: bool")
    with connected.context(), pytest.raises(Exception, match="nothing is fetched from elsewhere") as caught:
        program(image=dspy.Image("https://example.com/a.png"), question="Which?")
    assert isinstance(root_error(caught.value), RequestRefused)


def test_a_listed_model_is_handed_the_images(
    model_home: Path, folders: dict[str, Path], tmp_path: Path, elsewhere: Any, engines_of_its_own: None
) -> None:
    for path in folders["qwen2_vl"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 100_000 if path.suffix == ".safetensors" else None])
    settings = load_settings(
        home=model_home, lm={"model": f"mlx/{tmp_path}", "lease": "share", "fallbacks": ["elsewhere/big"]}
    )
    connection = connect(settings)
    content = [{"type": "text", "text": "Which?"}, {"type": "image_url", "image_url": {"url": uri(RED)}}]
    response = litellm.completion(model=connection.model, messages=[{"role": "user", "content": content}])
    assert said(response) == ("from elsewhere", "elsewhere/big")
    (call,) = elsewhere.calls
    assert call["messages"][0]["content"][1]["image_url"]["url"] == uri(RED)
    close_engines()


def test_text_alone_goes_to_it_as_well(connected: Any) -> None:
    response = litellm.completion(model=connected.model, messages=turns("Say hello.", "Be kind."), max_tokens=5)
    text, who = said(response)
    assert text and who == connected.model
