"""What somebody knows before adapting an image-text model, and the configuration that comes out."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dspy_toolkit.advising.situation import Situation
from dspy_toolkit.advising.writing import arguments_text, yaml_text
from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.store import Frozen


class CLIPSituation(Situation):
    """The new images, the pairs to tune on, and what must not be lost."""

    bounds = {"pairs": {"dozens": 80, "hundreds": 1_000, "thousands": float("inf")}}
    content: Literal["familiar", "new", "unknown"] = Field(
        default="unknown",
        description="whether the pictured things are kinds that the model has seen, or wholly new ones",
    )
    style: Literal["same", "different", "unknown"] = Field(
        default="unknown",
        description="whether the pictures look like those it was trained on, or are of another style or device",
    )
    pairs: Literal["dozens", "hundreds", "thousands", "unknown"] = Field(
        default="unknown", description="how many image-text pairs there are: below 80, below 1000, more"
    )
    keep: Literal["must", "some", "no", "unknown"] = Field(
        default="unknown",
        description="whether what the model can do already must be kept, should partly be, or does not matter",
    )
    time: Literal["short", "long", "unknown"] = Field(
        default="unknown", description="whether training has to be over in minutes, or may take long"
    )


class CLIPConfiguration(Frozen):
    """How to tune."""

    tools: ClassVar[tuple[str, ...]] = ("open_clip", "toolkit")

    learning_rate: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1, le=1_000)
    batch_size: int = Field(default=64, ge=8, le=65_536)
    locked: Literal["none", "image tower", "text tower"] = "none"
    weight: float = Field(default=1.0, gt=0, le=1, description="WiSE-FT's share of the tuned weights")
    warmup: int = Field(default=0, ge=0)
    loss_type: Literal["contrastive"] = "contrastive"
    temperature: float = Field(default=0.07, gt=0, le=1)
    pairs: int = Field(default=160, ge=2)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.batch_size > self.pairs:
            raise ValueError(
                f"batch_size is {self.batch_size}, but there are {self.pairs} pairs. The contrast is among the pairs of a batch, so "
                "a batch cannot be larger than the data: lower it."
            )
        if self.warmup > self.epochs * max(self.pairs // self.batch_size, 1):
            raise ValueError(
                f"warmup is {self.warmup} steps, and the whole training has fewer. The rate would never be reached: lower it."
            )
        return self

    def to_yaml(self, tool: str = "open_clip") -> str:
        """The configuration as a tool reads it.

        Args:
            tool: `open_clip` (arguments of `python -m open_clip_train.main`, and a line on how to mix the weights), or `toolkit`.

        Raises:
            ProjectError: no such tool.
        """
        if tool in ("open_clip", ""):
            values = {
                "lr": self.learning_rate,
                "epochs": self.epochs,
                "batch-size": self.batch_size,
                "warmup": self.warmup,
                "lock-image": self.locked == "image tower",
                "lock-text": self.locked == "text tower",
            }
            text = arguments_text("python -m open_clip_train.main", values)
            mixed = f"# afterwards: weights = {1 - self.weight:g} * pretrained + {self.weight:g} * tuned (WiSE-FT)\n"
            return text + (mixed if self.weight < 1 else "")
        if tool == "toolkit":
            return yaml_text(
                {
                    "domain": "general",
                    "learning_rate": self.learning_rate,
                    "batch_size": self.batch_size,
                    "num_epochs": self.epochs,
                    "loss_type": self.loss_type,
                    "temperature": self.temperature,
                }
            )
        raise ProjectError(f"There is no export for {tool!r}.{nearest(tool, self.tools)}")
