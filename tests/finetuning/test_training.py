"""The loop and the model in it, on tiny models in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dspy_toolkit.errors import TrainingError
from dspy_toolkit.finetuning.batches import evaluation_parts
from dspy_toolkit.finetuning.rows import EncodedRow, encode_rows
from dspy_toolkit.finetuning.values import TrainSettings
from dspy_toolkit.lm.models.tokenizer import load_tokenizer
from dspy_toolkit.lm.models.weights import Weights, load_model
from tests.finetuning.conftest import make_rows
from tests.lm.tiny import on_own_thread
from tests.samples import sample

Base = Callable[..., Weights]
pytestmark = pytest.mark.usefixtures("with_gradients")


def adapted(weights: Weights, settings: TrainSettings) -> Any:
    from dspy_toolkit.finetuning.model import AdaptedModel

    return AdaptedModel(load_model(weights, "cpu", differentiable=True)[0], settings)


def encoded(weights: Weights, count: int, **options: Any) -> list[EncodedRow]:
    return encode_rows(make_rows(count, **options), load_tokenizer(weights.folder, weights.sha256))


def training(weights: Weights, rows: list[EncodedRow], val: list[EncodedRow], settings: TrainSettings) -> Any:
    from dspy_toolkit.finetuning.training import Training

    return Training(adapted(weights, settings), rows, val, settings)


@pytest.mark.parametrize("kind", sample(["lora", "dora"], "lora"))
def test_eight_rows_are_learnt_by_heart(base: Base, kind: Any) -> None:
    weights = base()
    rows = encoded(weights, 8)
    settings = TrainSettings(kind=kind, epochs=100, rate=1e-2, rank=16, evaluations=1, patience=100)

    def run() -> Any:
        made = training(weights, rows, rows, settings)
        assert made.run() == "epochs"
        return made.state

    state = on_own_thread(run)
    assert state.val_losses[0].loss > 3
    assert state.val_losses[-1].loss < 0.05
    assert state.step == 100
    assert state.tokens == 100 * sum(len(row.tokens) for row in rows)


@pytest.mark.parametrize(
    ("kind", "layers"), [("llama", -1), ("llama", 1), ("llama", 3), ("llama", 4), ("sliding", 2), ("hybrid", 2)]
)
def test_the_loss_is_that_of_whole_rows(base: Base, kind: Any, layers: int) -> None:
    """Neither the shared beginning, nor frozen blocks, nor the head at some places changes it, nor its gradient."""
    weights, settings = base(kind), TrainSettings(rate=1e-2, layers=layers)
    rows = encoded(weights, 6)

    def run() -> None:
        import mlx.core as mx
        from mlx import nn

        made = adapted(weights, settings)
        assert made.shares is (kind == "llama")
        draw = np.random.default_rng(1)
        made.parameters = {
            name: mx.array(draw.normal(0, 0.05, array.shape).astype(np.float32))
            for name, array in made.parameters.items()
        }
        (part,) = evaluation_parts(rows, settings, share=made.shares)
        names = list(made.parameters)
        made.prepare([part])
        assert list(made.parameters) == names
        assert {int(name.split(".")[2]) for name in names} == set(range(4 - layers if layers > 0 else 0, 4))
        assert len(made.model.layers) == (layers if kind == "llama" and layers > 0 else 4)
        assert bool(len(part.prefix)) is made.shares
        loss, gradient = made.gradients(part)
        if made._frozen is not None:
            made._frozen.undo()
            made._frozen = None
        (whole,) = evaluation_parts(rows, settings, share=False)
        plain, plain_gradient = made.gradients(whole)
        assert gradient.keys() == plain_gradient.keys()
        one_by_one = 0.0
        for row in rows:
            logits = made.model(mx.array(row.tokens[None, :-1]))[0, mx.array(row.scored - 1)]
            one_by_one += nn.losses.cross_entropy(logits, mx.array(row.tokens[row.scored])).sum().item()
        assert loss.item() == pytest.approx(one_by_one, rel=1e-5)
        assert plain.item() == pytest.approx(one_by_one, rel=1e-5)
        for name, value in plain_gradient.items():
            largest = mx.abs(value).max().item()
            assert mx.abs(value - gradient[name]).max().item() <= 1e-4 * max(largest, 1), name

    on_own_thread(run)


def test_the_prompt_counts_for_nothing_but_what_follows_it(base: Base) -> None:
    """Another target where none is scored leaves the loss as it is; the scored tokens are the only targets."""
    weights, settings = base(), TrainSettings()
    tokenizer = load_tokenizer(weights.folder, weights.sha256)
    scored = make_rows(4, replies=("label: lora and so on",))
    rows = [
        encode_rows([row.model_copy(update={"scored": ((7, 11),), "reply": reply})], tokenizer)[0]
        for row in scored
        for reply in (row.reply, "label: lora, but the end is another")
    ]

    def run() -> list[float]:
        made = adapted(weights, settings)
        return [made.loss(evaluation_parts([row], settings, share=True)[0]).item() for row in rows]

    losses = on_own_thread(run)
    assert losses[::2] == losses[1::2]
    assert len(set(losses)) > 1


def test_the_best_adapter_is_kept_and_patience_ends_it(base: Base) -> None:
    """Validation rows that contradict what is trained get worse after a while."""
    weights = base()
    rows = encoded(weights, 8)
    val = encoded(weights, 8, replies=("federated", "lora", "clip"))
    settings = TrainSettings(epochs=80, rate=2e-2, batch_rows=8, evaluations=1, patience=3)

    def run() -> None:
        made = training(weights, rows, val, settings)
        assert made.run() == "patience"
        state = made.state
        merits = [each.merit for each in state.val_losses]
        assert state.val_losses[merits.index(max(merits))].step == state.best_step
        assert len(merits) == merits.index(max(merits)) + 1 + settings.patience
        made._model.parameters = state.best
        made._evaluate()
        assert state.val_losses[-1].merit == max(merits)

    on_own_thread(run)


def test_without_validation_rows_the_last_step_is_the_best(base: Base) -> None:
    weights, settings = base(), TrainSettings(epochs=2)

    def run() -> None:
        made = training(weights, encoded(weights, 9), [], settings)
        assert made.run() == "epochs"
        assert (made.state.step, made.state.best_step, made.state.val_losses) == (4, 4, [])

    on_own_thread(run)


def test_a_batch_in_parts_is_the_same_batch(base: Base) -> None:
    weights, rows = base(), encoded(base(), 16)

    def after_a_step(part_tokens: int) -> dict[str, Any]:
        made = training(weights, rows, [], TrainSettings(batch_rows=16, epochs=1, part_tokens=part_tokens))
        made.run()
        return {name: np.array(array) for name, array in made.state.now.items()}

    whole, parts = (on_own_thread(lambda tokens=tokens: after_a_step(tokens)) for tokens in (4096, 64))
    assert all(np.allclose(whole[name], parts[name], atol=1e-4) for name in whole)


def test_the_deadline_ends_it_with_what_is_best_then(base: Base) -> None:
    weights = base()
    rows = encoded(weights, 8)

    def run() -> None:
        made = training(weights, rows, rows, TrainSettings(epochs=1000, batch_rows=1))
        saved: list[tuple[int, int, bool]] = []
        stopped = made.run(
            deadline=time.monotonic() + 1.0,
            save=lambda state, last: saved.append((state.step, len(state.val_losses), last)),
        )
        assert stopped == "deadline"
        assert made.state.val_losses[-1].step == made.state.step
        assert saved[-1][::2] == (made.state.step, True)

    on_own_thread(run)


def test_a_training_that_diverges_is_told(base: Base) -> None:
    def run() -> None:
        made = training(base(), encoded(base(), 8), [], TrainSettings(rate=1.0, scale=100, epochs=50))
        made._model.parameters = {name: array + float("nan") for name, array in made.state.now.items()}
        with pytest.raises(TrainingError, match=r"loss of step 1 is nan: the training diverged\. Lower rate \(1\)"):
            made.run()

    on_own_thread(run)


def test_functions_without_gradients_are_refused(base: Base) -> None:
    def run() -> None:
        load_model(base(), "cpu")  # as an engine does
        with pytest.raises(TrainingError, match="Train in a process of its own"):
            adapted(base(), TrainSettings())

    on_own_thread(run)
