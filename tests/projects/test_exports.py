"""Every measured configuration is valid in every situation, and its export is read by the tool's own loader, or its known format."""

from __future__ import annotations

import argparse
import itertools
import random
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from dspy_toolkit.advising import Facts
from dspy_toolkit.advising.writing import plain_number, yaml_text
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.projects.clip.situation import CLIPConfiguration
from dspy_toolkit.projects.diffusion.situation import DiffusionConfiguration
from dspy_toolkit.projects.federated.situation import FederatedConfiguration
from dspy_toolkit.projects.lora.situation import LoRAConfiguration
from tests.projects.built_in import ADVISORS


def exported(name: str) -> list[Any]:
    """Configurations of a sample of situations, each with every measured configuration."""
    advisor = ADVISORS[name]
    kinds = [(*advisor.situation.levels(field), "unknown") for field in advisor.situation.model_fields]
    situations = list(itertools.product(*kinds))
    chosen = random.Random(0).sample(situations, min(30, len(situations)))
    made = []
    for values in chosen:
        situation = advisor.situation(**dict(zip(advisor.situation.model_fields, values, strict=True)))
        made += [advisor.configure(situation, row, Facts()) for row in advisor.configurations()[:12]]
    return made


def test_mlx_lm_reads_its_configuration_with_its_own_loader() -> None:
    from mlx_lm.lora import CONFIG_DEFAULTS, yaml_loader
    from mlx_lm.tuner.utils import build_schedule

    for configuration in exported("lora"):
        read = yaml.load(configuration.to_yaml(), yaml_loader)
        assert read.keys() <= CONFIG_DEFAULTS.keys()
        assert read["lora_parameters"].keys() <= {"rank", "scale", "dropout", "keys"}
        assert read["learning_rate"] == configuration.learning_rate
        assert isinstance(read["iters"], int) and read["iters"] >= 1
        if "lr_schedule" in read:
            schedule = build_schedule(read["lr_schedule"])
            assert float(schedule(configuration.warmup)) == pytest.approx(configuration.learning_rate, rel=0.05)


def test_the_toolkits_lora_sections_have_its_keys() -> None:
    for configuration in exported("lora")[:40]:
        read = yaml.safe_load(configuration.to_yaml("toolkit"))
        assert read["lora"].keys() == {"rank", "alpha", "dropout", "target_modules", "bias"}
        assert read["lora"]["alpha"] == configuration.rank * configuration.scale
        assert set(read["training"]) <= {
            "batch_size", "learning_rate", "num_epochs", "warmup_steps", "optimizer", "scheduler", "max_sequence_length",
        }  # fmt: skip
        assert isinstance(read["training"]["learning_rate"], float)


def test_flower_reads_flat_toml_of_numbers_and_texts() -> None:
    for configuration in exported("federated"):
        read = tomllib.loads(configuration.to_yaml())
        assert all(isinstance(value, int | float | str) for value in read.values())
        assert read["num-server-rounds"] == configuration.rounds
        assert 0 < read["fraction-train"] <= 1
        assert ("proximal-mu" in read) == (configuration.algorithm == "fedprox")
        flat = yaml.safe_load(configuration.to_yaml("toolkit"))
        assert flat["min_clients"] <= flat["clients_per_round"] <= flat["num_clients"]
        assert not {"aggregation", "mu", "delta"} & flat.keys()


def test_open_clips_arguments_are_its_flags() -> None:
    parser = argparse.ArgumentParser()
    for flag, kind in {"--lr": float, "--epochs": int, "--batch-size": int, "--warmup": int}.items():
        parser.add_argument(flag, type=kind)
    for flag in ("--lock-image", "--lock-text"):
        parser.add_argument(flag, action="store_true")
    for configuration in exported("clip"):
        words = shlex.split(configuration.to_yaml().replace("\\\n", ""), comments=True)
        read = parser.parse_args(words[3:])
        assert (read.lr, read.epochs) == (configuration.learning_rate, configuration.epochs)
        assert read.lock_image == (configuration.locked == "image tower")
        flat = yaml.safe_load(configuration.to_yaml("toolkit"))
        assert isinstance(flat["learning_rate"], float), "1e-4 would be a text there"
        assert not any(isinstance(value, dict) for value in flat.values()), "nested keys are refused there"


def test_mflux_is_told_the_steps_and_the_toolkit_a_class_name() -> None:
    for configuration in exported("diffusion"):
        assert shlex.split(configuration.to_yaml().replace("\\\n", "")) == [
            "mflux-generate",
            "--steps",
            str(configuration.steps),
        ]
        section = yaml.safe_load(configuration.to_yaml("toolkit"))["diffusion"]
        assert section["scheduler"].endswith("Scheduler") and 10 <= section["num_steps"] <= 100


def test_diffusers_builds_the_advised_scheduler() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not in the lock")
    for configuration in exported("diffusion")[:12]:
        read = yaml.safe_load(configuration.to_yaml("diffusers"))
        steps = read.pop("num_inference_steps")
        getattr(diffusers, read["_class_name"]).from_config(read).set_timesteps(steps)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (FederatedConfiguration, {"algorithm": "fedavg", "clients_per_round": 9, "num_clients": 5}, "cannot ask more"),
        (
            FederatedConfiguration,
            {"algorithm": "fedavg", "min_clients": 4, "clients_per_round": 3},
            "Every round would fail",
        ),
        (FederatedConfiguration, {"algorithm": "fedprox", "proximal_mu": 0.0}, "makes FedAvg FedProx"),
        (CLIPConfiguration, {"batch_size": 512, "pairs": 24}, "cannot be larger than the data"),
        (CLIPConfiguration, {"warmup": 10_000}, "would never be reached"),
        (DiffusionConfiguration, {"sampler": "heun", "evaluations": 2}, "takes two"),
        (LoRAConfiguration, {"scale": 20.0, "learning_rate": 0.01}, "diverged"),
        (LoRAConfiguration, {"layers": 0}, "no layer would be adapted"),
        (LoRAConfiguration, {"warmup": 300}, "never be reached"),
    ],
)
def test_rules_across_fields_teach(kind: Any, values: dict[str, Any], said: str) -> None:
    good = {
        FederatedConfiguration: {
            "algorithm": "fedavg",
            "learning_rate": 0.1,
            "local_epochs": 1,
            "rounds": 5,
            "num_clients": 5,
            "clients_per_round": 5,
            "min_clients": 2,
        },
        CLIPConfiguration: {"learning_rate": 1e-3, "epochs": 5},
        DiffusionConfiguration: {"sampler": "ddim", "evaluations": 8},
        LoRAConfiguration: {"rank": 8, "layers": 4, "learning_rate": 1e-3, "batch_size": 4, "iterations": 100},
    }[kind]
    kind(**good)
    with pytest.raises(ValueError, match=said):
        kind(**(good | values))


def test_an_unknown_tool_is_refused() -> None:
    for name in ADVISORS:
        with pytest.raises(ProjectError, match="no export for 'tensorflow'"):
            exported(name)[0].to_yaml("tensorflow")


@pytest.mark.parametrize("value", [1e-5, 1e-4, 0.03, 1.0, 2e-7, 40, 1e1])
def test_numbers_have_no_exponent(value: float) -> None:
    assert "e" not in plain_number(value)
    assert yaml.safe_load(yaml_text({"x": value}))["x"] == value
