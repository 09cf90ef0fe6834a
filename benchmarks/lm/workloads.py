"""What is asked: the programs, their requests, and how an answer is judged.

Requests are the router's training and validation rows; its sealed rows are not read. A salt near the start of a prompt
keeps one run's prefix from being another's, and is the same for every system, so that all get the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dspy_toolkit.projects.router.signatures import RouteRequest

Kind = Literal["classify", "explain", "configure"]
Way = Literal["dspy", "native"]
Measure = Literal["burst", "stream", "compile", "width"]

SHOT_TOKENS = 900
"""Of the few-shot prefix, demonstrations and instructions together."""


class LoraConfiguration(BaseModel):
    """How to fine-tune a language model with LoRA."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(ge=1, le=256)
    alpha: float = Field(gt=0, le=512)
    dropout: float = Field(ge=0, le=1)
    target_modules: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        min_length=1, max_length=4
    )
    bias: Literal["none", "all", "lora_only"]
    learning_rate: float = Field(gt=0, le=0.01)
    batch_size: int = Field(ge=1, le=64)
    num_epochs: int = Field(ge=1, le=20)
    optimizer: Literal["adamw", "sgd", "adafactor"]
    max_sequence_length: int = Field(ge=64, le=4096)


class ConfigureLora(dspy.Signature):
    """Propose a LoRA configuration for what the user wants to fine-tune, as one JSON object with all its fields."""

    request: str = dspy.InputField(desc="what a user asks, in the user's own words")
    configuration: LoraConfiguration = dspy.OutputField()


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    measure: Measure
    kind: Kind = "classify"
    max_tokens: int = 20
    requests: int = 48
    """Of a system that batches; one that does not has the same rate with few."""
    primed: bool = False
    """Whether the prefix has been seen before the clock starts."""
    shots: bool = False
    """Whether the prompt is filled with demonstrations up to SHOT_TOKENS."""
    ways: tuple[Way, ...] = ("dspy", "native")
    systems: tuple[str, ...] = ("engine", "expert", "generate", "mlx_lm.server", "llama.cpp")
    """Those that are affordable by default; naming the workload and the system runs any."""
    goals: dict[str, float] = field(default_factory=dict)
    """Peer → how many times its rate the engine is meant to reach."""


ENGINE = ("engine",)
WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "classify-cold",
        "classification, cold prefix",
        "burst",
        goals={"expert": 1.5, "generate": 15, "mlx_lm.server": 3, "llama.cpp": 4},
    ),
    Workload(
        "classify-warm",
        "classification, warm",
        "burst",
        primed=True,
        goals={"expert": 1.5, "generate": 15, "mlx_lm.server": 2, "llama.cpp": 4},
    ),
    Workload(
        "few-shot",
        "900-token few-shot prefix",
        "burst",
        requests=32,
        shots=True,
        goals={"generate": 20, "mlx_lm.server": 2, "llama.cpp": 4},
    ),
    Workload(
        "thought",
        "chain of thought, free text",
        "burst",
        kind="explain",
        max_tokens=200,
        requests=24,
        goals={"expert": 1.0, "generate": 4, "mlx_lm.server": 1.2, "llama.cpp": 1.5},
    ),
    Workload(
        "json",
        "JSON configuration",
        "burst",
        kind="configure",
        max_tokens=128,
        requests=24,
        goals={"expert": 1.5, "generate": 10, "mlx_lm.server": 2, "llama.cpp": 2},
    ),
    Workload("bootstrap", "BootstrapFewShot, end to end", "compile", ways=("dspy",), systems=("engine", "llama.cpp")),
    Workload("mipro", "MIPROv2, end to end", "compile", max_tokens=200, ways=("dspy",), systems=ENGINE),
    # Last, since it leaves work behind that nobody waits for.
    Workload("first-token", "first token under load", "stream", kind="explain", max_tokens=64, primed=True),
    Workload("width", "decoding at width 16", "width", kind="explain", max_tokens=64, ways=("native",), systems=ENGINE),
)
FEW = 4
"""Requests of a burst to a system that answers one after another and keeps no prefix."""


def find_workload(name: str) -> Workload:
    """The workload called `name`. Raises KeyError."""
    return {workload.name: workload for workload in WORKLOADS}[name]


def make_program(kind: Kind, salt: str, demos: Sequence[dict[str, str]] = ()) -> dspy.Module:
    """The program of a workload, with `demos` before the question."""
    signature = {"classify": RouteRequest, "explain": RouteRequest, "configure": ConfigureLora}[kind]
    salted = signature.with_updated_fields("request", desc=f"what a user asks, in the user's own words ({salt})")
    program = dspy.ChainOfThought(salted) if kind == "explain" else dspy.Predict(salted)
    for predictor in program.predictors():
        predictor.demos = [dspy.Example(**demo) for demo in demos]
    return program


def signature_of(program: dspy.Module) -> type[dspy.Signature]:
    """Of the program's only predictor."""
    return program.predictors()[0].signature


def messages_of(program: dspy.Module, request: str) -> list[dict[str, str]]:
    """The prompt as DSPy's own `ChatAdapter` writes it: the same for every system's native call."""
    (predictor,) = program.predictors()
    return dspy.ChatAdapter().format(predictor.signature, predictor.demos, {"request": request})


def read_reply(program: dspy.Module, text: str) -> dict[str, Any] | None:
    """The output fields of a native reply, or None where it cannot be read. A configuration may also stand alone."""
    signature = signature_of(program)
    try:
        return dspy.ChatAdapter().parse(signature, text)
    except (dspy.utils.exceptions.AdapterParseError, ValueError, TypeError):
        if "configuration" not in signature.output_fields:
            return None
    start, end = text.find("{"), text.rfind("}")
    try:
        return {"configuration": LoraConfiguration.model_validate_json(text[start : end + 1])}
    except ValidationError:
        return None


def is_right(fields: dict[str, Any] | None, row: dict[str, str]) -> bool:
    """Whether the label is the row's; a configuration is right when it is valid."""
    if fields is None:
        return False
    return (
        isinstance(fields["configuration"], LoraConfiguration)
        if "configuration" in fields
        else (fields.get("project") == row["project"])
    )
