"""What the MLX engine does when something inside it fails, or when its callers go away."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineFailed,
    LeaseTimeout,
    ModelError,
    ModelTooLarge,
    RequestRefused,
)
from dspy_toolkit.lm.engine import thread
from dspy_toolkit.lm.engine.device_errors import explain
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.engine.sequence import Sequence
from dspy_toolkit.lm.models import lease
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.locks import take
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns


def test_an_exception_in_one_grammar_ends_that_request_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = 'start: "a" | "b" /c+/'
    force = Sequence._force

    def raising(row: Sequence) -> list[int]:
        if row.request.grammar == broken and row.reply:
            raise RuntimeError("the grammar broke")
        return force(row)

    monkeypatch.setattr(Sequence, "_force", raising)
    sent = [send(engine, turns("Pick."), grammar='start: "red" | "blue"') for _ in range(2)]
    sent += [send(engine, turns("Hello!")), send(engine, turns("Pick."), grammar=broken)]
    with pytest.raises(EngineFailed, match="the grammar broke") as caught:
        sent[3].result(60)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert all(pending.result(60).text for pending in sent[:3])


def test_a_grammar_that_grows_too_complex_ends_that_request_only(engine: Engine) -> None:
    """Llguidance gives up on a lexer with too many states: its matcher then says so instead of raising."""
    heavy = "start: /(.*a.{12}){2,}b/ /x/"
    pending = send(engine, turns("Write aaaa."), grammar=heavy, max_tokens=30)
    other = send(engine, turns("Hello!"))
    try:
        assert pending.result(120).completion_tokens <= 30
    except RequestRefused as error:
        assert "grammar" in str(error)
    assert other.result(60).text


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """What the model raises, once each, instead of being run."""
    from mlx_lm.models.llama import Model

    real = Model.__call__
    errors: list[BaseException] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Model, "__call__", call)
    return errors


def test_a_failing_step_ends_what_runs_and_the_next_request_works(
    engine: Engine, failing: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    sent = [send(engine, turns(f"Tell story {n}."), max_tokens=300) for n in range(3)]
    for pending in sent:
        next(iter(pending))
    failing.append(ValueError("matrix on fire"))
    for pending in sent:
        with pytest.raises(EngineFailed, match="ValueError: matrix on fire") as caught:
            pending.result(60)
        assert isinstance(caught.value.__cause__, ValueError)
        assert caught.value.retryable
    assert "A step of the engine" in caplog.text
    thread = engine._thread
    assert send(engine, turns("Hello!")).result(60).text
    assert engine._thread is thread
    settled(engine)


def test_a_lost_gpu_is_said_to_need_a_new_process(
    tiny: Callable[..., Path], tmp_path: Path, failing: list[BaseException], closing: Callable[[Engine], Engine]
) -> None:
    engine = closing(Engine(find_weights(f"mlx/{tiny()}", tmp_path), LMSettings(lease="share")))
    assert send(engine, turns("Hello!")).result(60)
    failing.append(RuntimeError("cudaStreamSynchronize failed: an illegal memory access was encountered"))
    with pytest.raises(DeviceLost, match=r"illegal memory access was encountered\. Start the process again") as caught:
        send(engine, turns("Hello!")).result(60)
    assert not caught.value.retryable
    # Later requests are refused at once with the same, and not sent to a device that cannot answer.
    with pytest.raises(DeviceLost, match="Start the process again"):
        send(engine, turns("Hello!"))


def test_a_full_device_is_said_to_need_a_lower_limit(
    tiny: Callable[..., Path], tmp_path: Path, failing: list[BaseException], closing: Callable[[Engine], Engine]
) -> None:
    settings = LMSettings(lease="share", memory_limit_gb=3)
    engine = closing(Engine(find_weights(f"mlx/{tiny()}", tmp_path), settings))
    assert send(engine, turns("Hello!")).result(60)
    failing.append(RuntimeError("[metal::malloc] Unable to allocate 1000 bytes."))
    with pytest.raises(EngineFailed, match=r"Lower lm\.memory_limit_gb \(3 now\)") as caught:
        send(engine, turns("Hello!")).result(60)
    assert caught.value.retryable
    assert send(engine, turns("Hello!")).result(60)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "cudaErrorIllegalAddress",
        "CUDA error: unspecified launch failure",
        "CUDA error: device-side assert triggered",
    ],
)
def test_what_ends_a_cuda_context(said: str) -> None:
    assert isinstance(explain(RuntimeError(said), "engine", None), DeviceLost)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cudaMallocAsync failed: out of memory"),
        RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…)"),
        RuntimeError("[malloc] Unable to allocate 99 bytes."),
        MemoryError(),
    ],
)
def test_what_means_that_memory_is_used_up(error: Exception) -> None:
    assert "lm.memory_limit_gb (not set" in str(explain(error, "engine", None))
    assert "memory_limit" not in str(explain(ValueError("matrix on fire"), "engine", None))


def test_a_failing_prefix_ends_what_runs_and_the_next_request_works(
    engine: Engine, failing: list[BaseException]
) -> None:
    failing.append(ValueError("no memory for this prefix"))
    prompt = "Shared words that nobody said before, many of them. " * 8
    sent = [send(engine, turns(prompt + str(n))) for n in range(3)]
    failures = 0
    for pending in sent:
        try:
            pending.result(60)
        except EngineFailed as error:
            assert "no memory" in str(error)
            failures += 1
    assert failures >= 1
    assert send(engine, turns(prompt + "again")).result(60).text
    settled(engine)


def test_the_engine_recovers_when_its_thread_dies(
    engine: Engine, failing: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    sent = [send(engine, turns(f"Tell story {n}."), max_tokens=300) for n in range(18)]  # some still wait
    next(iter(sent[0]))
    thread = engine._thread
    assert thread is not None
    failing.append(SystemExit("killed"))
    for pending in sent:
        with pytest.raises(EngineFailed, match="killed"):
            pending.result(60)
    assert "failed" in caplog.text
    assert send(engine, turns("Hello!")).result(60).text
    assert engine._thread is not thread
    assert not thread.is_alive()
    settled(engine)


def test_cancelling_at_random_leaves_nothing_behind(engine: Engine) -> None:
    before = settled(engine)
    random_ = random.Random(0)
    sent = []
    for number in range(60):
        grammar = 'start: "a" /b{1,30}/ "c"' if number % 3 == 0 else None
        fields: dict[str, Any] = {"max_tokens": random_.randint(1, 12), "temperature": number % 2, "grammar": grammar}
        sent.append(send(engine, turns("Go. " * random_.randint(1, 25)), **fields))
        if random_.random() < 0.5:
            random_.choice(sent).cancel()
        time.sleep(random_.random() * 0.02)
    for pending in sent:
        with contextlib.suppress(CancelledError):
            assert pending.result(120).completion_tokens <= 12
    after = settled(engine)
    assert after.requests == before.requests + 60
    assert after.failed == before.failed
    assert after.cancelled > before.cancelled
    assert engine._running == set()


def test_queued_requests_meet_their_deadline_too(model_home: Path) -> None:
    settings = LMSettings(batch_size=1, lease="share")
    engine = Engine(find_weights("mlx/smollm2-135m", model_home), settings)
    running = send(engine, turns("Tell a story."), max_tokens=1000)
    next(iter(running))
    queued = send(engine, turns("x"), deadline_seconds=0.1)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        queued.result(60)
    assert time.monotonic() - started < 5
    assert not running.future.done()
    engine.close()


def test_waiting_for_the_accelerator(model_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "lease_path", lambda device: tmp_path / "lock")
    weights = find_weights("mlx/smollm2-135m", model_home)
    (tmp_path / "lock").mkdir()
    other = take(tmp_path / "lock")  # as another process would hold it
    assert other is not None
    try:
        engine = Engine(weights, LMSettings(lease="wait", lease_seconds=0.5))
        with pytest.raises(LeaseTimeout, match=r"after 0\.5 s"):
            send(engine, turns("x")).result(30)
        patient = Engine(weights, LMSettings(lease="wait", lease_seconds=600))
        hurried = send(patient, turns("x"), deadline_seconds=0.1)
        pending = send(patient, turns("x"))
        with pytest.raises(DeadlineExceeded):
            hurried.result(10)
        started = time.monotonic()
        patient.close()  # does not wait for the accelerator
        assert time.monotonic() - started < 5
        with pytest.raises(EngineFailed, match="closed"):
            pending.result(1)
    finally:
        other.release()
    monkeypatch.setattr(thread, "IDLE_SECONDS", 0.1)
    first = send(engine, turns("Hello!"), max_tokens=2)
    assert first.result(60).text
    # Idle for a while, it lets others have the accelerator, and takes it back before it computes anything.
    deadline = time.monotonic() + 10
    while (other := take(tmp_path / "lock")) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other is not None
    model, waits = engine._batch, send(engine, turns("Hello!"), max_tokens=2)
    assert not waits.future.done()
    time.sleep(0.05)
    assert not waits.future.done()
    other.release()
    assert waits.result(60).text and take(tmp_path / "lock") is None
    assert engine._batch is model, "the model stays loaded"
    engine.close()


def test_loading_ahead_of_the_first_request(model_home: Path, broken_model: Path) -> None:
    engine = Engine(find_weights("mlx/smollm2-135m", model_home), LMSettings(lease="share"))
    engine.load().result(60)
    assert engine._batch is not None and engine.stats().requests == 0
    assert engine.load().result(1) is None, "a model that is loaded is not loaded again"
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        engine.load()
    broken = Engine(find_weights(f"mlx/{broken_model}", model_home), LMSettings(lease="share"))
    with pytest.raises(ModelError, match="cannot load"):
        broken.load().result(60)
    broken.close()


def test_model_too_large(model_home: Path) -> None:
    weights = find_weights("mlx/smollm2-135m", model_home)
    with pytest.raises(ModelTooLarge, match=r"needs about 1\.\d GB .* There are .* \(lm\.memory_limit_gb is 0\.5"):
        Engine(weights, LMSettings(memory_limit_gb=0.5))


def test_weights_that_cannot_be_loaded_fail_the_request(model_home: Path, broken_model: Path) -> None:
    engine = Engine(find_weights(f"mlx/{broken_model}", model_home), LMSettings(lease="share"))
    with pytest.raises(ModelError, match="cannot load"):
        send(engine, turns("x")).result(60)
    engine.close()


def test_one_thread_an_engine(engine: Engine) -> None:
    name = f"engine {engine.model}"
    send(engine, turns("x"), max_tokens=1).result(60)
    assert sum(thread.name == name and thread is engine._thread for thread in threading.enumerate()) == 1
