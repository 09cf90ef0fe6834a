"""How much noise a privacy budget asks for, by Google's dp-accounting.

What is protected is a client's whole data (client-level differential privacy), as in DP-FedAvg (McMahan et al. 2018,
arXiv:1710.06963): the server clips each client's update and adds Gaussian noise to their sum. Clients are taken to be drawn
independently in each round, and rounds to compose; the bound is that of Rényi differential privacy at integer orders.

Not covered: what the noise costs in accuracy, which was not measured.
"""

from __future__ import annotations

from dspy_toolkit.errors import ProjectError

INSTALL = "pip install dp-accounting"
ORDERS = (*range(2, 65), 96, 128, 256, 512)


def noise_multiplier(epsilon: float, delta: float, share: float, rounds: int) -> float | None:
    """Standard deviation of the noise over the clipping norm; None where dp-accounting is not installed.

    Args:
        epsilon: the budget, above 0.
        delta: the chance that it does not hold, in (0, 1); well below 1 over the number of clients.
        share: of the clients that a round asks, in (0, 1].
        rounds: at least 1.

    Raises:
        ProjectError: a number out of its range.
    """
    if not epsilon > 0:
        raise ProjectError(f"epsilon is {epsilon:g}, but a privacy budget is above 0, such as --epsilon 8.")
    if not 0 < delta < 1:
        raise ProjectError(f"delta is {delta:g}, but it is a chance between 0 and 1, such as --delta 1e-5.")
    try:
        import dp_accounting  # pyright: ignore[reportMissingImports]
        from dp_accounting.rdp import RdpAccountant  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def training(noise: float) -> object:
        one_round = dp_accounting.PoissonSampledDpEvent(share, dp_accounting.GaussianDpEvent(noise))
        return dp_accounting.SelfComposedDpEvent(one_round, rounds)

    return float(dp_accounting.calibrate_dp_mechanism(lambda: RdpAccountant(ORDERS), training, epsilon, delta))
