"""The training loop: AdamW with warm-up and cosine, validation, and the best adapter kept.

Everything but the clock follows from the rows, the settings and the machine: a run that was interrupted and goes on from its
`TrainingState` ends with the very bytes of one that was not. The deadline alone looks at the clock; it ends the loop before
a step that would not be done in time, and what is best then is kept.

Not covered: loading, files, other processes (`child`, `process`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx import optimizers
from mlx.utils import tree_flatten

from dspy_toolkit.finetuning.batches import Part, epoch_batches, evaluation_parts, steps_of_epoch, total_steps
from dspy_toolkit.finetuning.model import AdaptedModel
from dspy_toolkit.finetuning.rows import EncodedRow
from dspy_toolkit.finetuning.values import Diverged, Evaluation, Progress, Stopped, TrainSettings

CLIP = 1.0
"""Longest gradient; a longer one is shortened to this."""
MARGIN = 1.3
"""A step may take so many times as long as the mean one."""


@dataclass
class TrainingState:
    """Where a training is: all that a later run needs to go on as if nothing had happened."""

    now: dict[str, Any]
    """The adapter's arrays."""
    best: dict[str, Any]
    """Those of `best_step`."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """AdamW's arrays; empty before the first step."""
    step: int = 0
    best_step: int = 0
    val_losses: list[Evaluation] = field(default_factory=list)
    tokens: int = 0
    cost: int = 0
    """Of the batches, as `Part.cost`."""
    step_seconds: float = 0.0
    """Of all steps."""
    val_seconds: float = 0.0
    """Of all evaluations."""


class Training:
    """One adapter on its way. For the thread that loaded the model."""

    def __init__(
        self,
        model: AdaptedModel,
        rows: Sequence[EncodedRow],
        val_rows: Sequence[EncodedRow],
        settings: TrainSettings,
        state: TrainingState | None = None,
    ) -> None:
        """Args:
        val_rows: may be empty: then all epochs are trained, and the last step's adapter is the best.
        state: of an earlier run of the same rows and settings.
        """
        self.steps = total_steps(len(rows), settings)
        self._model, self._rows, self._settings = model, rows, settings
        self._epoch, self._batches = -1, [[]]
        self._of_epoch = steps_of_epoch(len(rows), settings)
        self._every = max(1, round(self._of_epoch / settings.evaluations))
        self._val = evaluation_parts(val_rows, settings, share=model.shares) if val_rows else []
        model.prepare([*evaluation_parts(rows, settings, share=model.shares), *self._val])
        if state is None:
            first = model.draw(settings.seed)
            state = TrainingState(first, first)
        self.state = state
        self._warm = math.ceil(settings.warmup * self.steps)
        self._optimizer = optimizers.AdamW(
            learning_rate=settings.rate, weight_decay=settings.weight_decay, bias_correction=True
        )
        model.parameters = self.state.now
        self._optimizer.init(self.state.now)
        if self.state.optimizer:
            self._optimizer.state = _unflattened(self.state.optimizer)
            self._optimizer.init(self.state.now)  # else the first step would: what is there stays

    def run(
        self,
        *,
        until: int | None = None,
        deadline: float = math.inf,
        progress: Callable[[Progress], None] = lambda _: None,
        save: Callable[[TrainingState, bool], None] = lambda _, __: None,
    ) -> Stopped:
        """Train until something stops it.

        Args:
            until: a step at which it pauses, evaluated; None: to the end. One that lies behind it does nothing.
            deadline: of `time.monotonic`.
            progress: called after each step and evaluation.
            save: called with the state after each step and evaluation, and whether it is the last time. Not after an
                evaluation that the clock alone asked for: a run that goes on later must not know of it.

        Raises:
            Diverged: the loss is no number any more.
        """
        state, loss = self.state, None
        if until is not None and state.step > until:
            return "rung"  # an earlier run paused there, and this one must leave no other trace
        while True:
            over = state.step >= self.steps
            pausing = until is not None and state.step >= until
            due = over or pausing or state.step % self._every == 0
            late = time.monotonic() + MARGIN * (self._seconds_a_step() + self._seconds_an_evaluation()) > deadline
            if late:
                save(state, True)
            if self._val and (due or late) and (not state.val_losses or state.val_losses[-1].step < state.step):
                self._evaluate()
                progress(self._progress(loss))
                if not late:
                    save(state, False)
            if not self._val:
                state.best, state.best_step = state.now, state.step
            if over:
                return "epochs"
            if self._val and self._bad_evaluations() >= self._settings.patience:
                return "patience"
            if pausing:
                return "rung"
            if late:
                return "deadline"
            loss = self._step()
            progress(self._progress(loss))
            save(state, False)

    def _step(self) -> float:
        began, state = time.perf_counter(), self.state
        parts = self._batch(state.step)
        count = sum(len(part.targets) for part in parts)
        total, gradient = 0.0, {}
        for part in parts:
            loss, more = self._model.gradients(part)
            total += loss.item()
            gradient = {name: gradient[name] + value if gradient else value for name, value in more.items()}
        if not math.isfinite(total):
            raise Diverged(
                f"The loss of step {state.step + 1} is {total}: the training diverged. Lower rate "
                f"({self._settings.rate:g}) or scale ({self._settings.scale:g})."
            )
        scaled, _ = optimizers.clip_grad_norm({name: value / count for name, value in gradient.items()}, CLIP)
        self._optimizer.learning_rate = self._rate(state.step)
        state.now = self._optimizer.apply_gradients(scaled, state.now)
        mx.eval(state.now, self._optimizer.state)
        self._model.parameters = state.now
        state.optimizer = dict(tree_flatten(self._optimizer.state))
        state.step += 1
        state.tokens += sum(part.tokens for part in parts)
        state.cost += sum(part.cost for part in parts)
        state.step_seconds += time.perf_counter() - began
        return total / count

    def _batch(self, step: int) -> list[Part]:
        epoch, at = divmod(step, self._of_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self._rows, self._settings, epoch, share=self._model.shares)
            self._epoch = epoch
        return self._batches[at]

    def _rate(self, step: int) -> float:
        if step < self._warm:
            return self._settings.rate * (step + 1) / self._warm
        done = (step - self._warm) / max(self.steps - self._warm, 1)
        return self._settings.rate * (1 + math.cos(math.pi * done)) / 2

    def _evaluate(self) -> None:
        began, state = time.perf_counter(), self.state
        found = [self._model.evaluate(part) for part in self._val]
        rows = sum(len(part.encoded) for part in self._val)
        now = Evaluation(
            step=state.step,
            loss=sum(loss for loss, _, _ in found) / sum(len(part.targets) for part in self._val),
            right=sum(right for _, right, _ in found) / rows,
            likely=min(sum(likely for _, _, likely in found) / rows, 1.0),
        )
        if not state.val_losses or now.merit > max(each.merit for each in state.val_losses):
            state.best, state.best_step = state.now, state.step
        state.val_losses.append(now)
        state.val_seconds += time.perf_counter() - began

    def _bad_evaluations(self) -> int:
        return sum(each.step > self.state.best_step for each in self.state.val_losses)

    def _seconds_a_step(self) -> float:
        return self.state.step_seconds / max(self.state.step, 1)

    def _seconds_an_evaluation(self) -> float:
        return self.state.val_seconds / max(len(self.state.val_losses), 1)

    def _progress(self, loss: float | None) -> Progress:
        state = self.state
        left = self.steps - state.step
        evaluations = math.ceil(left / self._every) if self._val else 0
        return Progress(
            step=state.step,
            steps=self.steps,
            loss=loss,
            val_loss=state.val_losses[-1].loss if state.val_losses else None,
            tokens_per_second=state.tokens / state.step_seconds if state.step else 0.0,
            seconds_left=left * self._seconds_a_step() + evaluations * self._seconds_an_evaluation()
            if state.step
            else None,
        )


def _unflattened(arrays: dict[str, Any]) -> dict[str, Any]:
    """AdamW's state, whose names of parameters have dots of their own: `a.b.lora_a.m` is `m` of `a.b.lora_a`."""
    state: dict[str, Any] = {}
    for name, array in arrays.items():
        parameter, _, moment = name.rpartition(".")
        if parameter:
            state.setdefault(parameter, {})[moment] = array
        else:
            state[moment] = array
    return state
