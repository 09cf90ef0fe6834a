"""What somebody knows before training together, and the configuration that comes out."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dspy_toolkit.advising.situation import Situation
from dspy_toolkit.advising.writing import toml_text, yaml_text
from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.store import Frozen

INFINITE = float("inf")


class FederatedSituation(Situation):
    """Who trains together, on what, and how long."""

    bounds = {
        "clients": {"a handful": 9, "a dozen": 21, "dozens": 61, "a hundred": INFINITE},
        "rounds": {"few": 25, "many": INFINITE},
    }
    clients: Literal["a handful", "a dozen", "dozens", "a hundred", "unknown"] = Field(
        default="unknown", description="how many sites or devices: up to 8, 9 to 20, 21 to 60, more"
    )
    skew: Literal["even", "mild", "strong", "unknown"] = Field(
        default="unknown",
        description="how different the clients' data are: alike, somewhat, each has only some classes",
    )
    devices: Literal["reliable", "unreliable", "unknown"] = Field(
        default="unknown", description="whether the clients answer every round, or often drop out"
    )
    rounds: Literal["few", "many", "unknown"] = Field(
        default="unknown", description="how many rounds of communication there can be: below 25, or more"
    )
    privacy: Literal["required", "not required", "unknown"] = Field(
        default="unknown", description="whether differential privacy (noise, a privacy budget) is demanded"
    )


class FederatedConfiguration(Frozen):
    """How to train: what the server and the clients are told."""

    tools: ClassVar[tuple[str, ...]] = ("flower", "toolkit")

    algorithm: Literal["fedavg", "fedprox", "fedadam"]
    learning_rate: float = Field(gt=0, le=1, description="of each client's SGD")
    local_epochs: int = Field(ge=1, le=50)
    rounds: int = Field(ge=1, le=1_000)
    num_clients: int = Field(ge=2, le=100_000)
    clients_per_round: int = Field(ge=1)
    min_clients: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1, le=4_096)
    proximal_mu: float = Field(default=0.0, ge=0, le=10)
    server_learning_rate: float = Field(default=1.0, gt=0, le=1)
    noise_multiplier: float | None = Field(
        default=None, gt=0, description="standard deviation of the noise over the clipping norm, for a privacy budget"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.clients_per_round > self.num_clients:
            raise ValueError(
                f"clients_per_round is {self.clients_per_round}, but there are only {self.num_clients} clients. "
                "A round cannot ask more clients than there are: lower it."
            )
        if self.min_clients > self.clients_per_round:
            raise ValueError(
                f"min_clients is {self.min_clients}, but a round asks only {self.clients_per_round}. Every round would fail: "
                "lower min_clients, or ask more clients."
            )
        if (self.proximal_mu > 0) != (self.algorithm == "fedprox"):
            raise ValueError(
                f"proximal_mu is {self.proximal_mu:g} with {self.algorithm}. The pull towards the server's weights is what "
                "makes FedAvg FedProx: set it above 0 for fedprox, and to 0 for the others."
            )
        return self

    def to_yaml(self, tool: str = "flower") -> str:
        """The configuration as a tool reads it.

        Args:
            tool: `flower` (a TOML file for `flwr run . --run-config FILE`), or `toolkit` (the EfficientAI-MLX-Toolkit's flat YAML,
                which knows neither the algorithm nor its settings).

        Raises:
            ProjectError: no such tool.
        """
        if tool in ("flower", ""):
            values: dict[str, object] = {
                "num-server-rounds": self.rounds,
                "strategy": self.algorithm,
                "fraction-train": round(self.clients_per_round / self.num_clients, 6),
                "min-train-nodes": self.min_clients,
                "min-available-nodes": self.clients_per_round,
                "local-epochs": self.local_epochs,
                "learning-rate": self.learning_rate,
                "batch-size": self.batch_size,
            }
            if self.algorithm == "fedprox":
                values["proximal-mu"] = self.proximal_mu
            if self.algorithm == "fedadam":
                values["server-learning-rate"] = self.server_learning_rate
            if self.noise_multiplier is not None:
                values["noise-multiplier"] = round(self.noise_multiplier, 4)
                values["num-sampled-clients"] = self.clients_per_round
            return toml_text(
                values, "flwr run . --run-config FILE; the keys are read by your app's server and client functions"
            )
        if tool == "toolkit":
            return yaml_text(
                {
                    "num_clients": self.num_clients,
                    "clients_per_round": self.clients_per_round,
                    "min_clients": self.min_clients,
                    "num_rounds": self.rounds,
                    "local_epochs": self.local_epochs,
                    "learning_rate": self.learning_rate,
                    "batch_size": self.batch_size,
                    "selection_strategy": "random",
                }
            )
        raise ProjectError(f"There is no export for {tool!r}.{nearest(tool, self.tools)}")
