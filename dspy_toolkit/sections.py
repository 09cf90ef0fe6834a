"""What a table of the settings is, and the tables that only one room reads.

Covered: the fields and their ranges. Not covered: where values come from (`dspy_toolkit.settings`).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A table of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


EnsembleRule = Literal["majority", "weighted", "first_valid", "mean_probabilities", "judge"]


class EnsembleTable(Section):
    """`[serving.ensembles.NAME]`: several programs behind one name."""

    members: tuple[str, ...] = Field(min_length=2, max_length=16)
    """Programs by name: `router`, `router@3`."""
    rule: EnsembleRule = "majority"
    """How their answers become one."""
    weights: tuple[float, ...] = ()
    """One a member, for `weighted` and `mean_probabilities`; without them all count alike."""

    @model_validator(mode="after")
    def _one_weight_a_member(self) -> Self:
        if self.weights and (len(self.weights) != len(self.members) or min(self.weights) <= 0):
            raise ValueError(f"{len(self.members)} members need {len(self.members)} weights above 0")
        if self.rule == "weighted" and not self.weights:
            raise ValueError("the rule weighted needs weights, one a member")
        return self


class ChallengerTable(Section):
    """`[serving.challengers.NAME]`: a version beside the champion of NAME."""

    version: int = Field(ge=1)
    """Of the same project."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Of the requests that it is asked."""
    answers: bool = False
    """Whether its answers are returned (canary), or only compared with the champion's (shadow)."""


class ServingSettings(Section):
    """`dspy-toolkit serve`: what is served, to whom, and how much of it."""

    host: str = "127.0.0.1"
    """Where to listen. Anything but this machine itself needs at least one key (`dspy-toolkit serve keys add`)."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""
    programs: tuple[str, ...] = ()
    """What to serve: projects (their champions), `router@3`. Without any: every project that has a champion."""
    deadline_seconds: float = Field(default=60, gt=0)
    """The longest that a request may take; a client asks for less with the header `X-Deadline-Seconds`."""
    poll_seconds: float = Field(default=2, gt=0, le=60)
    """How often the registry is asked what the champion is."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests that are worked on at once."""
    queue_size: int = Field(default=256, ge=0)
    """Requests that may wait for that; one more is turned away with 429."""
    key_concurrency: int = Field(default=64, ge=1)
    """Requests of one key, worked on or waiting."""
    rate_per_minute: int = Field(default=6000, ge=1)
    """Requests of one key; without keys, of everybody together."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """The largest body of a request."""
    max_field_characters: int = Field(default=20_000, ge=1)
    """The longest text in an input."""
    max_batch: int = Field(default=64, ge=1)
    """Rows of one batch."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest reply of the chat route."""
    threads: int = Field(default=8, ge=1, le=256)
    """For programs that have no `aforward`; each takes one thread a request."""
    fall_back_on: tuple[str, ...] = ("previous",)
    """What answers where the champion cannot, in this order: `previous` (the version that it replaced), or a LiteLLM model. What
    is listed here is sent requests, and nothing else is.
    """
    fall_back_share: float = Field(default=0.6, gt=0, lt=1)
    """Of the time that is left, for all but the last that may answer."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which a program, or a model, is not asked any more."""
    breaker_seconds: float = Field(default=30, gt=0)
    """After which it is tried again."""
    remember_requests: int = Field(default=10_000, ge=0)
    """Answered requests, 64 MB of them at most, that feedback can still refer to."""
    trace_share: float = Field(default=0, ge=0, le=1)
    """Share of the requests that become MLflow traces, with inputs and outputs."""
    log_text: bool = False
    """Whether the log holds the inputs and outputs of requests."""
    ensembles: dict[str, EnsembleTable] = {}
    """Several programs behind one name."""
    challengers: dict[str, ChallengerTable] = {}
    """A version beside a program's champion."""
