"""What federated learning really does: scikit-learn's handwritten digits, spread over simulated clients, in NumPy.

Clients are simulated one after the other in one process. A small network (64 inputs, 32 hidden units, 10 classes) is trained by
FedAvg (McMahan et al. 2017), FedProx (Li et al. 2020) or FedAdam (Reddi et al. 2021). Skew is a Dirichlet draw of each client's
labels; an absent client sends nothing in a round. Accuracy is taken on rows that no client has, at two numbers of rounds of the
same run.

Not covered: differential privacy, attacks, real networks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dspy_toolkit.advising.cells import Cell

CLIENTS = {"a handful": 5, "a dozen": 12, "dozens": 30, "a hundred": 100}
SKEW = {"even": 100.0, "mild": 0.5, "strong": 0.1}
"""The Dirichlet's concentration: the smaller, the fewer classes a client sees."""
ABSENT = {"reliable": 0.0, "unreliable": 0.5}
"""The chance that a chosen client sends nothing."""
ROUNDS = {"few": 10, "many": 40}
PER_ROUND = 5
"""Clients that the server asks in a round."""
TRAIN = 700
"""Rows that the clients share; all of them together."""
TEST = 900
HIDDEN = 32
BATCH = 32

ALGORITHMS = ("fedavg", "fedprox", "fedadam")
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
EPOCHS = (1, 5)
MU = 0.1
"""FedProx's pull towards the server's weights."""
SERVER_RATE = 0.03
"""FedAdam's step on the server."""

SEEDS = (0, 1, 2)


def cells(grid: str = "full") -> tuple[Cell, ...]:
    """The cells of a grid: `full`, or `tiny` for a check in a minute."""
    from dspy_toolkit.advising.cells import Cell

    contexts = [
        {"clients": clients, "skew": skew, "devices": devices}
        for clients, skew, devices in product(CLIENTS, SKEW, ABSENT)
    ]
    seeds = SEEDS
    if grid == "tiny":
        contexts, seeds = [context for context in contexts if context["devices"] == "reliable"][-4:], SEEDS[:2]
    configurations = tuple(
        {"algorithm": algorithm, "learning_rate": rate, "local_epochs": epochs}
        for algorithm, rate, epochs in product(ALGORITHMS, RATES, EPOCHS)
        if algorithm != "fedprox" or epochs > 1  # its pull has nothing to hold back in a single pass
    )
    return tuple(
        Cell(
            project="federated",
            measure=f"{__name__}:measure",
            family=" / ".join(context.values()),
            context=context,
            configurations=configurations,
            seed=seed,
        )
        for context in contexts
        for seed in seeds
    )


def measure(context: Mapping[str, Any], configurations: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Run every configuration in the context; two rows each, one for each number of rounds.

    Accuracy is in points (0 to 100), traffic in megabytes that cross the network in both directions (float32).
    """
    train, test = _digits(seed)
    shards = _shards(train[1], CLIENTS[context["clients"]], SKEW[context["skew"]], np.random.default_rng(seed))
    rows = []
    for configuration in configurations:
        started = time.process_time()
        for rounds, accuracy, sent in _train(train, test, shards, ABSENT[context["devices"]], configuration, seed):
            outcome = {
                "rounds": rounds,
                "accuracy": round(100 * accuracy, 3),
                "traffic_mb": round(sent, 3),
                "cpu_seconds": round(time.process_time() - started, 4),
            }
            rows.append(dict(configuration) | outcome)
    return rows


def _digits(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    found = find_spec("sklearn")
    assert found is not None and found.origin is not None  # a dependency of this package
    # Read from its file: importing scikit-learn takes longer than a cell.
    rows = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    rows = rows[np.random.default_rng(1_000 + seed).permutation(len(rows))]
    images, labels = rows[:, :64] / 16.0, rows[:, 64].astype(int)
    return (images[TEST : TEST + TRAIN], labels[TEST : TEST + TRAIN]), (images[:TEST], labels[:TEST])


def _shards(labels: np.ndarray, clients: int, concentration: float, random: np.random.Generator) -> list[np.ndarray]:
    """Each client's rows; every client has at least two."""
    shards: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        shares = np.cumsum(random.dirichlet(np.full(clients, concentration)))[:-1]
        for shard, part in zip(shards, np.split(rows, (shares * len(rows)).astype(int)), strict=True):
            shard.extend(part.tolist())
    for shard in shards:
        while len(shard) < 2:
            richest = max(shards, key=len)
            shard.append(richest.pop())
    return [np.array(shard) for shard in shards]


def _gradients(weights: list[np.ndarray], images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    first, first_bias, second, second_bias = weights
    hidden = np.maximum(images @ first + first_bias, 0)
    logits = hidden @ second + second_bias
    logits -= logits.max(axis=1, keepdims=True)
    error = np.exp(logits)
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    back = (error @ second.T) * (hidden > 0)
    return [images.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


def _train(train: Any, test: Any, shards: list[np.ndarray], absent: float, configuration: Mapping[str, Any], seed: int):
    """Yield (name of the number of rounds, accuracy, megabytes) at each number of rounds."""
    random = np.random.default_rng(2_000 + seed)
    images, labels = train
    algorithm, rate = configuration["algorithm"], float(configuration["learning_rate"])
    weights = [
        random.normal(0, np.sqrt(2 / 64), (64, HIDDEN)),
        np.zeros(HIDDEN),
        random.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, 10)),
        np.zeros(10),
    ]
    size = sum(part.size for part in weights) * 4 / 1e6
    first, second = [np.zeros_like(part) for part in weights], [np.full_like(part, 1e-6) for part in weights]
    sent = 0.0
    for number in range(1, max(ROUNDS.values()) + 1):
        asked = random.choice(len(shards), min(PER_ROUND, len(shards)), replace=False)
        sent += size * len(asked)
        there = [client for client in asked if random.random() >= absent]
        if there:
            changes = [np.zeros_like(part) for part in weights]
            total = sum(len(shards[client]) for client in there)
            for client in there:
                local = _local(weights, images[shards[client]], labels[shards[client]], configuration, rate, random)
                share = len(shards[client]) / total
                for change, new, old in zip(changes, local, weights, strict=True):
                    change += share * (new - old)
            sent += size * len(there)
            if algorithm == "fedadam":
                for index, change in enumerate(changes):
                    first[index] = 0.9 * first[index] + 0.1 * change
                    second[index] = 0.99 * second[index] + 0.01 * change**2
                    weights[index] = weights[index] + SERVER_RATE * first[index] / (np.sqrt(second[index]) + 1e-3)
            else:
                weights = [old + change for old, change in zip(weights, changes, strict=True)]
        for name, rounds in ROUNDS.items():
            if number == rounds:
                hidden = np.maximum(test[0] @ weights[0] + weights[1], 0)
                right = (hidden @ weights[2] + weights[3]).argmax(axis=1) == test[1]
                yield name, float(right.mean()), sent


def _local(
    weights: list[np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    configuration: Mapping[str, Any],
    rate: float,
    random: np.random.Generator,
) -> list[np.ndarray]:
    local = [part.copy() for part in weights]
    pull = MU if configuration["algorithm"] == "fedprox" else 0.0
    for _ in range(int(configuration["local_epochs"])):
        order = random.permutation(len(labels))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for part, gradient, origin in zip(
                local, _gradients(local, images[rows], labels[rows]), weights, strict=True
            ):
                # Clipped element by element: a rate of 1 may diverge, and is then measured as the failure it is.
                part -= rate * np.clip(gradient + pull * (part - origin), -5, 5)
    return local
