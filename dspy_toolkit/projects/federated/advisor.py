"""Advice on federated learning, from digits that were really trained on together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_toolkit.advising import Advisor, Columns, Facts, context_from
from dspy_toolkit.advising.rules import keyword_reader
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.projects.federated import measure
from dspy_toolkit.projects.federated.privacy import INSTALL, noise_multiplier
from dspy_toolkit.projects.federated.situation import FederatedConfiguration, FederatedSituation

PARAMETERS = 64 * measure.HIDDEN + measure.HIDDEN + measure.HIDDEN * 10 + 10
"""Of the measured network."""
DELTA = 1e-5
_SERVER_RATE = {"fedadam": measure.SERVER_RATE}
PATTERNS = {
    "skew": {
        "even": r"\bi\.?i\.?d\b(?<!non-iid)|identical|same (mix|distribution)|alike|similar data|shuffled|homogen|evenly",
        "strong": r"only (one|a few|some) (class|kind|type|label)|each .{0,30}(own|different) (class|disease|kind)|very (different|skewed|heterogen)|completely different|extreme|non-?iid|nothing in common",
        "mild": r"somewhat|slightly|a bit different|mild|overlap|mostly the same|varies a little",
    },
    "devices": {
        "unreliable": r"drop|flaky|offline|disconnect|battery|unreliable|come and go|intermittent|patchy|asleep|vanish",
        "reliable": r"always (on|online|there)|reliable|never (drop|fail)|stable|wired|data ?cent|24/7|servers? that",
    },
    "rounds": {
        "few": r"few rounds|(one|single|couple) .{0,15}rounds?|slow (link|network)|expensive (link|traffic)|satellite|metered|only overnight",
        "many": r"many rounds|as many rounds|hundreds of rounds|rounds are (cheap|free)|no limit on rounds|fast network",
    },
    "privacy": {
        "not required": r"no (differential )?privacy|privacy is not|without (dp|noise)|not sensitive|public data",
        "required": r"differential|epsilon|\bdp\b|privacy budget|dp-?sgd|noise (is|must)",
    },
    "clients": {
        "a handful": r"\b(two|three|four|five|six|seven|eight|handful)\b",
        "a dozen": r"\b(nine|ten|eleven|twelve|dozen|fifteen|twenty)\b(?!s)",
        "dozens": r"dozens|thirty|forty|fifty",
        "a hundred": r"hundred|thousand|million|fleet",
    },
}
NUMBERS = {
    "clients": r"(?<![\d,])(\d[\d,]{0,11})\s{0,3}(?:[a-z]{1,20}\s){0,2}?(?:clients?|hospitals?|phones?|sites?|devices?|branches|banks?|clinics?|schools?|cars?|nodes?|farms?|labs?|watches|stores?)",
    "rounds": r"(?<![\d,])(\d[\d,]{0,11})\s{0,3}(?:[a-z]{1,20}\s)?(?:rounds?|syncs?|exchanges)",
}


def objective(runs: Any, situation: FederatedSituation) -> Any:
    """Points of accuracy that are missing to 100."""
    return 100.0 - runs["accuracy"]


def allowed(situation: FederatedSituation, configuration: Mapping[str, Any]) -> str:
    """Everything measured may be advised."""
    return ""


def configure(situation: FederatedSituation, chosen: Mapping[str, Any], facts: Facts) -> FederatedConfiguration:
    """The measured configuration, for as many clients as the situation has."""
    clients = measure.CLIENTS.get(situation.clients, 12)
    algorithm = chosen["algorithm"]
    asked = min(measure.PER_ROUND, clients)
    return FederatedConfiguration(
        algorithm=algorithm,
        learning_rate=float(chosen["learning_rate"]),
        local_epochs=int(chosen["local_epochs"]),
        rounds=measure.ROUNDS.get(situation.rounds, measure.ROUNDS["many"]),
        num_clients=clients,
        clients_per_round=asked,
        min_clients=max(1, asked // 2) if situation.devices == "unreliable" else asked,
        batch_size=measure.BATCH,
        proximal_mu=measure.MU if algorithm == "fedprox" else 0.0,
        server_learning_rate=_SERVER_RATE.get(algorithm, 1.0),
        noise_multiplier=facts.values.get("noise_multiplier"),
    )


def facts(situation: FederatedSituation, given: Mapping[str, str]) -> Facts:
    """What crosses the network (4 bytes a parameter, down and up, for each asked client and round), and the noise of a budget."""
    parameters = number_of(given, "parameters", PARAMETERS)
    rounds = measure.ROUNDS.get(situation.rounds, measure.ROUNDS["many"])
    clients = measure.CLIENTS.get(situation.clients, 12)
    asked = min(measure.PER_ROUND, clients)
    traffic = 4 * parameters * 2 * asked * rounds / 1e6
    values: dict[str, float] = {"parameters": parameters, "traffic_mb": traffic, "rounds": rounds}
    notes = [f"Traffic at most {traffic:.4g} MB: {parameters:.0f} parameters of 4 bytes, down and up, {rounds} rounds."]
    if "epsilon" in given:
        epsilon, delta = number_of(given, "epsilon", 0.0), number_of(given, "delta", DELTA)
        noise = noise_multiplier(epsilon, delta, asked / clients, rounds)
        if noise is None:
            notes.append(f"How much noise epsilon {epsilon:g} asks for is computed by dp-accounting: {INSTALL}.")
        else:
            values |= {"epsilon": epsilon, "delta": delta, "noise_multiplier": noise}
            notes.append(
                f"Noise multiplier {noise:.4g} keeps each client's data within epsilon {epsilon:g} at delta {delta:g}: {asked} "
                f"of {clients} clients a round, {rounds} rounds, by dp-accounting's Rényi bound; what it costs in accuracy was "
                "not measured."
            )
    return Facts(values, tuple(notes))


def number_of(given: Mapping[str, str], name: str, default: float) -> float:
    """A fact that was given as a number.

    Raises:
        ProjectError: it is none.
    """
    said = given.get(name, default)
    try:
        return float(said)
    except ValueError:
        raise ProjectError(f"{name} is {said!r}, but it is a number, such as --{name} {default or 8:g}.") from None


def outside(situation: FederatedSituation) -> list[str]:
    """Privacy by noise was not measured."""
    if situation.privacy == "required":
        return ["no run added noise; how much a budget asks for is computed (--epsilon 8), what it costs is not known"]
    return []


def cost(configuration: Mapping[str, Any]) -> float:
    """Passes of a client over its data in a round; FedAvg before what needs more state."""
    return configuration["local_epochs"] + 0.1 * measure.ALGORITHMS.index(configuration["algorithm"])


advisor = Advisor(
    name="federated",
    situation=FederatedSituation,
    columns=Columns(
        context=("clients", "skew", "devices", "rounds"),
        configuration=("algorithm", "learning_rate", "local_epochs"),
        outcomes=("accuracy",),
        logarithmic=("learning_rate",),
    ),
    runs_file=Path(__file__).parent / "runs.parquet",
    objective=objective,
    allowed=allowed,
    configure=configure,
    default={"algorithm": "fedavg", "learning_rate": 0.01, "local_epochs": 5},
    default_note="FedAvg, rate 0.01, 5 local epochs, as the EfficientAI-MLX-Toolkit's configuration has it",
    unit="accuracy points",
    describe=lambda loss: f"accuracy {100 - loss:.1f} % on digits",
    cost=cost,
    context_of=context_from(("clients", "skew", "devices", "rounds")),
    outside=outside,
    cells=measure.cells,
    keywords=keyword_reader(FederatedSituation, PATTERNS, NUMBERS),
    facts=facts,
    given={
        "parameters": "of your model, for the traffic",
        "epsilon": "the privacy budget of a client's data, for the noise",
        "delta": f"the chance that the budget does not hold; {DELTA:g} where it is left out",
    },
    loss_column="accuracy",
)
