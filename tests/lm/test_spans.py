"""What a call cost stands on the MLflow span around it, in a real local store."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dspy_toolkit.lm.litellm import provider
from dspy_toolkit.lm.meter import MeteredLM
from dspy_toolkit.lm.spans import FROM_ENGINE, PREFIX, USAGE, annotate
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection
from dspy_toolkit.tracking.mlflow_client import connect, experiment_id

# Of MLflow's own models, imported with the first span.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

ENGINE = {
    "queue_seconds": 0.5,
    "prefill_seconds": 1.25,
    "decode_seconds": 2.0,
    "seconds": 3.75,
    "reused_tokens": 3,
    "forced_tokens": 1,
    "model": "mlx/x@0",
}


@pytest.fixture
def store(home: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """MLflow's process-wide address points into the test's home, and back afterwards."""
    # An experiment with its files in the home: the default one's are in the folder that the database was made from.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id(connect(home), home))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(home.tracking_uri)
    yield home
    mlflow.set_tracking_uri(before)


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeteredLM:
    """An LM whose engine says what each reply took."""
    fill = provider.fill

    def with_numbers(*arguments: Any) -> Any:
        response = fill(*arguments)
        response._hidden_params["engine"] = [ENGINE for _ in response._hidden_params["engine"]]
        return response

    monkeypatch.setattr(provider, "fill", with_numbers)
    return fake_connection(lambda request: "one two three", tmp_path).lm


def attributes(span: Any) -> dict[str, Any]:
    """What the store has of a span, without the common beginning."""
    (kept,) = [each for each in mlflow.get_trace(span.trace_id, flush=True).data.spans if each.span_id == span.span_id]
    return {name.removeprefix(PREFIX): value for name, value in kept.attributes.items()}


def test_a_traced_call_carries_its_numbers(store: Settings, lm: MeteredLM) -> None:
    with mlflow.start_span("call", span_type="CHAT_MODEL") as span:
        lm("a b")
    kept = attributes(span)
    assert {name: kept[name] for name in FROM_ENGINE} == {name: ENGINE[name] for name in FROM_ENGINE}
    assert (kept["calls"], kept["cached_calls"], kept["prompt_tokens"], kept["completion_tokens"]) == (1, 0, 5, 3)
    assert kept[USAGE] == {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
    assert mlflow.get_trace(span.trace_id, flush=True).info.token_usage == kept[USAGE]


def test_calls_of_one_span_are_added_up_and_cached_ones_cost_nothing(store: Settings, lm: MeteredLM) -> None:
    with mlflow.start_span("program") as span:
        for prompt in ("a", "b", "a"):
            lm(prompt)
    kept = attributes(span)
    assert (kept["calls"], kept["cached_calls"], kept["completion_tokens"]) == (3, 1, 6)
    assert (kept["queue_seconds"], kept["decode_seconds"]) == (1.0, 4.0)
    assert USAGE not in kept  # the model's own spans have it, and MLflow adds those up


def test_a_response_without_the_engines_numbers(store: Settings) -> None:
    class Bare:
        pass

    class Odd:
        _hidden_params = {"engine": [{"queue_seconds": "soon"}]}

    with mlflow.start_span("call", span_type="LLM") as span:
        for response in (Bare(), Odd(), None, {"choices": []}):
            annotate(response, cached=False, prompt_tokens=2, completion_tokens=1)
    kept = attributes(span)
    # What cannot be read is left out whole.
    assert (kept["calls"], kept["prompt_tokens"]) == (3, 6)
    assert "queue_seconds" not in kept


def test_the_engines_own_numbers_get_there(store: Settings, tmp_path: Path) -> None:
    lm = fake_connection(lambda request: "one two three", tmp_path, seconds_per_token=0.01).lm
    with mlflow.start_span("call") as span:
        lm("a b", n=2)
    kept = attributes(span)
    assert FROM_ENGINE[0] in kept
    assert 0.03 <= kept["seconds"] < 10


def test_threads_that_share_a_span(store: Settings) -> None:
    def call() -> None:
        annotate(None, cached=False, prompt_tokens=1, completion_tokens=1)

    with mlflow.start_span("many") as span, ThreadPoolExecutor(8) as pool:
        contexts = [contextvars.copy_context() for _ in range(80)]
        for future in [pool.submit(context.run, call) for context in contexts]:
            future.result()
    assert attributes(span)["calls"] == 80


def test_no_span_no_harm(lm: MeteredLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lm("a") == ["one two three"]

    def broken() -> Any:
        raise RuntimeError("the store is gone")

    monkeypatch.setattr(mlflow, "get_current_active_span", broken)
    assert lm("b") == ["one two three"]


def test_mlflow_is_not_imported_for_it() -> None:
    code = (
        "import sys\nfrom dspy_toolkit.lm.spans import annotate\n"
        "annotate(None, cached=False, prompt_tokens=1, completion_tokens=1)\nprint('mlflow' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"
