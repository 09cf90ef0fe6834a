"""The committed runs: whole, small, and what a run from scratch gives again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dspy_toolkit.advising.cells import measure_cell
from dspy_toolkit.advising.references import interval_over_families, regrets
from tests.projects.built_in import ADVISORS


@pytest.mark.parametrize("name", ADVISORS)
def test_the_runs_are_whole_and_small(name: str) -> None:
    advisor = ADVISORS[name]
    runs = advisor.runs
    assert advisor.runs_file.stat().st_size < 1_000_000
    keys = [advisor.columns.family, *advisor.columns.context, *advisor.columns.configuration, "seed"]
    assert not runs.duplicated(keys).any()
    outcomes = runs[[*advisor.columns.outcomes, "cpu_seconds", "cell_cpu_seconds", "peak_mb"]]
    assert np.isfinite(outcomes.to_numpy(dtype=float)).all()
    assert tuple(advisor.default) == advisor.columns.configuration
    assert dict(advisor.default) in advisor.configurations()


@pytest.mark.parametrize("name", ["federated", "clip"])
def test_a_tiny_grid_from_scratch_agrees_with_the_committed_runs(name: str, tmp_path: Path) -> None:
    """Within three deviations between seeds, on a machine that may round differently."""
    advisor = ADVISORS[name]
    cell = advisor.cells("tiny")[0]
    again = measure_cell(cell.model_copy(update={"configurations": cell.configurations[::7]}), tmp_path)
    names, outcome = [*advisor.columns.context, *advisor.columns.configuration], advisor.loss_column
    committed = advisor.runs[advisor.runs["family"] == cell.family]
    spread = committed.groupby(names)[outcome].std()
    same = committed[committed["seed"] == cell.seed].set_index(names)[outcome]
    assert len(again) >= 5
    for row in again:
        key = tuple(row[name] for name in names)
        assert abs(row[outcome] - same[key]) <= 3 * max(spread[key], spread.median()) + 1e-6, row


def test_the_surrogate_beats_chance_and_the_default_on_held_out_families() -> None:
    advisor = ADVISORS["federated"]
    found = regrets(advisor, advisor.situation(), ("default", "random", "surrogate"))
    means = {name: interval_over_families(rows)[0] for name, rows in found.groupby("reference")}
    assert means["surrogate"] < means["default"] / 2
    assert means["surrogate"] < means["random"] / 2


def test_samplers_draw_from_a_gaussian_whose_denoiser_is_exact() -> None:
    """For patches with deviation 0.5, the noise in x is known; with many steps every sampler must end at deviation 0.5."""
    from dspy_toolkit.projects.diffusion import measure

    for schedule in measure.SCHEDULES:
        levels = measure.noise_levels(schedule)
        assert np.all(np.diff(levels) < 0) and 0 < levels[-1] < 0.01

        def exact(noisy: np.ndarray, at: float, levels: np.ndarray = levels) -> np.ndarray:
            # In the denoiser's coordinates, x = sqrt(a) * patch + sqrt(1 - a) * noise.
            log_sigma = np.interp(at, np.arange(len(levels)), np.log((1 - levels) / levels) / 2)
            share = 1 / (1 + np.exp(2 * log_sigma))
            return noisy * np.sqrt(1 - share) / (share * 0.25 + 1 - share)

        for sampler in measure.SAMPLERS:
            for spacing in measure.SPACINGS:
                configuration = {"sampler": sampler, "evaluations": 400, "spacing": spacing}
                found = measure.sample(exact, levels, configuration, seed=1)
                assert found.std() == pytest.approx(0.5, abs=0.02), (schedule, configuration)
                assert abs(found.mean()) < 0.03


def test_energy_distance_is_zero_for_equals_and_grows() -> None:
    from dspy_toolkit.projects.diffusion.measure import energy_distance

    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 300, 8))
    assert abs(energy_distance(one, other)) < 0.05
    assert energy_distance(one, other + 1) > energy_distance(one, other + 0.5) > 0.1
