"""What goes into a training, and what comes out of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dspy_toolkit.errors import TrainingError
from dspy_toolkit.lm.protocol import Message
from dspy_toolkit.store import Frozen

Stopped = Literal["patience", "epochs", "deadline", "rung", "behind", "diverged"]
"""`rung`: paused where a race compares; `behind`: others of the race went on in its place; `diverged`: its loss was no number
any more."""


class Diverged(TrainingError):
    """The loss of a step is no number any more: of a race, that arm is out of it."""


class TrainingRow(Frozen):
    """A prompt, and the reply that the model is to give to it."""

    prompt: tuple[Message, ...] = Field(min_length=1)
    """As a request to the engine has it."""
    reply: str = Field(min_length=1)
    """The whole text, as the engine would give it."""
    scored: tuple[tuple[int, int], ...] = ()
    """Spans [start, end) of characters of the reply that count in the loss, say the labels in it; empty: all of the reply,
    and the token that ends the turn."""
    thinking: bool | None = False
    """As `GenerationRequest.thinking`; the engine reads a request with a grammar as False."""


class TrainSettings(Frozen):
    """How an adapter is trained."""

    kind: Literal["lora", "dora"] = "lora"
    rank: int = Field(default=8, ge=1, le=256)
    scale: float = Field(default=2.0, gt=0, le=100)
    """What the product of the two matrices is multiplied by: α/r. mlx_lm's own default, 20, diverges at this rate."""
    layers: int = Field(default=-1, ge=-1)
    """Blocks to adapt, from the last one on; -1: all. Fewer are faster: no gradient goes below them."""
    rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate at its highest."""
    epochs: float = Field(default=3.0, gt=0, le=1000)
    """Passes over the rows; the learning rate falls to 0 at the end of the last one."""
    batch_rows: int = Field(default=8, ge=1, le=4096)
    """Rows of one step."""
    part_tokens: int = Field(default=1024, ge=16)
    """Tokens computed at once, which bounds the memory: a batch with more is computed in parts, whose gradients are added."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    seed: int = Field(default=0, ge=0)
    """Of the adapter's first weights and the order of the rows."""
    evaluations: int = Field(default=2, ge=1, le=1000)
    """Of the validation rows in an epoch; one more comes before the first step and one after the last."""
    patience: int = Field(default=4, ge=1)
    """Training stops after so many evaluations in a row that were not better than the best."""


class Evaluation(Frozen):
    """The validation rows at one step."""

    step: int
    """0: before the first one."""
    loss: float
    """Mean natural cross-entropy of a scored token."""
    right: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows that are answered right by the likeliest token at each place."""
    likely: float = Field(default=0.0, ge=0, le=1)
    """Mean probability of a row's scored tokens together."""

    @property
    def merit(self) -> tuple[float, float]:
        """What steps and settings are compared by: the larger, the better.

        The loss alone stops a classifier too early: once it is sure, few wrong rows raise it while more rows are right. The share
        that is right alone jumps by whole rows. Their probability does neither, so it counts as much. Where nothing is
        right or likely, as in long texts, the loss decides.
        """
        return round((self.right + self.likely) / 2, 3), -self.loss


class RowSet(Frozen):
    """Rows to train on, and those that tell how well."""

    rows: tuple[TrainingRow, ...] = Field(min_length=1)
    val_rows: tuple[TrainingRow, ...] = ()


class Arm(Frozen):
    """One of the trainings of a race."""

    settings: TrainSettings
    rows: int = Field(default=0, ge=0)
    """Which of the race's row sets it reads."""


class Progress(Frozen):
    """Where a training is; of a race, all its trainings together."""

    step: int
    steps: int
    """If nothing stops it earlier."""
    arm: int = 0
    """Of a race, which one took the step."""
    loss: float | None = None
    """Of the step's rows; None before the first one."""
    val_loss: float | None = None
    """Of the last evaluation."""
    tokens_per_second: float = 0.0
    """Tokens of the rows; what they share is computed once and counted for each."""
    seconds_left: float | None = None
    """If nothing stops it earlier; None while nothing was measured."""


class Trained(Frozen):
    """A finished training."""

    adapter: str
    """sha256 of the adapter in `home/adapters`."""
    val_losses: tuple[Evaluation, ...]
    """Empty without validation rows."""
    best_step: int
    """The step whose weights were kept: that of the highest `Evaluation.merit`, or the last. 0: no step was better than none."""
    steps: int
    """Taken."""
    tokens: int
    """Of the rows that were trained on, repetitions included."""
    seconds: float
    """In the training loop, validation included; of all runs together where one was interrupted."""
    tokens_per_second: float
    stopped: Stopped
    peak_bytes: int
    """Of MLX's memory, the model included."""

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of `best_step`; None without validation rows."""
        return next((each for each in self.val_losses if each.step == self.best_step), None)


class ArmResult(Frozen):
    """How one of the trainings of a race went."""

    val_losses: tuple[Evaluation, ...]
    steps: int
    stopped: Stopped


class Raced(Frozen):
    """A finished race."""

    winner: int
    """Its arm."""
    trained: Trained
    """The winner's, with the tokens and seconds of all arms."""
    arms: tuple[ArmResult, ...]
    """In the order in which they were given."""


class Prediction(Frozen):
    """What a training will take."""

    seconds: float
    """Loading included; with patience it may be less."""
    tokens: int
    """As `Trained.tokens`."""
    measured: bool
    """Whether the speed was measured on this machine with this model, or is a default by the model's size."""
