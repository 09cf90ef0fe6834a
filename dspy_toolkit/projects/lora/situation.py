"""What somebody knows before fine-tuning, and the configuration that comes out."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dspy_toolkit.advising.situation import Situation
from dspy_toolkit.advising.writing import yaml_text
from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.store import Frozen

INFINITE = float("inf")
MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


class LoRASituation(Situation):
    """The texts, the model, the machine and the time."""

    bounds = {
        "rows": {"dozens": 100, "hundreds": 1_000, "thousands": 10_000, "more": INFINITE},
        "length": {"short": 300, "long": INFINITE},
        "model": {"under 1B": 1, "1-4B": 5, "7-8B": 10, "larger": INFINITE},
        "memory": {"8GB": 12, "16GB": 24, "32GB": 48, "64GB or more": INFINITE},
    }
    units = {"model": {"m": 1e-3}, "memory": {"mb": 1e-3}}
    text: Literal["chat", "code", "prose", "records", "terms", "legal", "other", "unknown"] = Field(
        default="unknown", description="what the texts are; records are rows of fields, terms are glossaries and names"
    )
    rows: Literal["dozens", "hundreds", "thousands", "more", "unknown"] = Field(
        default="unknown", description="how many training examples: below 100, below 1000, below 10000, more"
    )
    length: Literal["short", "long", "unknown"] = Field(
        default="unknown", description="whether an example has fewer than 300 tokens, or more"
    )
    model: Literal["under 1B", "1-4B", "7-8B", "larger", "unknown"] = Field(
        default="unknown", description="parameters of the model"
    )
    memory: Literal["8GB", "16GB", "32GB", "64GB or more", "unknown"] = Field(
        default="unknown", description="of the machine"
    )
    time: Literal["minutes", "hours", "unknown"] = Field(
        default="unknown", description="whether it has to be done within an hour, or may take hours or a night"
    )


class LoRAConfiguration(Frozen):
    """How to train an adapter."""

    tools: ClassVar[tuple[str, ...]] = ("mlx_lm", "toolkit")

    model: str = "mlx/smollm2-135m"
    data: str = "data"
    rank: int = Field(ge=1, le=256)
    scale: float = Field(default=2.0, gt=0, le=64, description="alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: int = Field(ge=-1, le=200, description="the last ones; -1 is all")
    modules: tuple[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...] = ()
    """None given: mlx_lm's own choice, all linear layers."""
    learning_rate: float = Field(gt=0, le=0.1)
    batch_size: int = Field(ge=1, le=256)
    iterations: int = Field(ge=1, le=1_000_000)
    epochs: int = Field(default=1, ge=1, le=100)
    warmup: int = Field(default=0, ge=0)
    max_length: int = Field(default=512, ge=8, le=131_072)
    checkpoint: bool = False

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.layers == 0:
            raise ValueError("layers is 0: no layer would be adapted. Give the number of last layers, or -1 for all.")
        if self.warmup >= self.iterations:
            raise ValueError(
                f"warmup is {self.warmup} of {self.iterations} iterations: the rate would never be reached. Warm up for a tenth."
            )
        if self.learning_rate * self.scale > 0.05:
            raise ValueError(
                f"learning_rate {self.learning_rate:g} with scale {self.scale:g}: an adapter's step is their product, and at "
                "0.02 training diverged in all that was measured. Lower one of them; the usual scale is 2."
            )
        return self

    def to_yaml(self, tool: str = "mlx_lm") -> str:
        """The configuration as a tool reads it.

        Args:
            tool: `mlx_lm` (`mlx_lm.lora -c FILE`), or `toolkit` (the EfficientAI-MLX-Toolkit's sections `lora` and `training`).

        Raises:
            ProjectError: no such tool.
        """
        if tool in ("mlx_lm", ""):
            return yaml_text(self._mlx_lm(), "mlx_lm.lora -c FILE")
        if tool == "toolkit":
            return yaml_text(
                {
                    "lora": {
                        "rank": self.rank,
                        "alpha": float(self.rank * self.scale),
                        "dropout": self.dropout,
                        "target_modules": list(self.modules or MODULES),
                        "bias": "none",
                    },
                    "training": {
                        "batch_size": self.batch_size,
                        "learning_rate": self.learning_rate,
                        "num_epochs": self.epochs,
                        "warmup_steps": self.warmup,
                        "optimizer": "adamw",
                        "scheduler": "cosine" if self.warmup else "linear",
                        "max_sequence_length": self.max_length,
                    },
                }
            )
        raise ProjectError(f"There is no export for {tool!r}.{nearest(tool, self.tools)}")

    def _mlx_lm(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "model": self.model,
            "train": True,
            "data": self.data,
            "fine_tune_type": "lora",
            "num_layers": self.layers,
            "batch_size": self.batch_size,
            "iters": self.iterations,
            "learning_rate": self.learning_rate,
            "max_seq_length": self.max_length,
            "grad_checkpoint": self.checkpoint,
            "lora_parameters": {"rank": self.rank, "scale": self.scale, "dropout": self.dropout},
        }
        if self.modules:
            values["lora_parameters"]["keys"] = [MODULES[name] for name in self.modules]
        if self.warmup:
            # mlx_lm takes the rate from the schedule then.
            values["lr_schedule"] = {
                "name": "cosine_decay",
                "warmup": self.warmup,
                "warmup_init": 0.0,
                "arguments": [self.learning_rate, self.iterations],
            }
        return values
