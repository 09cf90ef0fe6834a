"""Advice: a valid configuration, an honest range, numbers that are facts, and a guard that no words get past."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.advising.advice import advise, advise_on, checked_explanation, known_numbers
from dspy_toolkit.advising.explaining import unsupported_numbers
from dspy_toolkit.errors import DatasetError, ProjectError
from dspy_toolkit.projects.lora.facts import SIZES, memory_bytes, read_model, row_lengths
from dspy_toolkit.settings import Settings
from tests.projects.built_in import ADVISORS

federated, lora, diffusion = ADVISORS["federated"], ADVISORS["lora"], ADVISORS["diffusion"]


def test_advice_from_options_alone() -> None:
    advice = advise(federated, clients="30", skew="strong", devices="unreliable", rounds="40")
    assert advice.situation.known() == {
        "clients": "dozens", "skew": "strong", "devices": "unreliable", "rounds": "many",
    }  # fmt: skip
    assert advice.range is not None and advice.range[0] < advice.expected < advice.range[1]
    assert advice.unknown == () and advice.outside == ()
    assert unsupported_numbers(advice.text, known_numbers(advice)) == []
    assert all(each.loss <= advice.candidates[-1].loss for each in advice.candidates)


def test_a_description_is_read_by_keywords_while_nothing_is_promoted(tmp_path: Path) -> None:
    advice = advise(
        federated, "five clinics, phones drop out, 10 rounds", settings=Settings(home=tmp_path), skew="even"
    )
    assert "keyword rules" in advice.read_by
    assert advice.situation.known() == {
        "clients": "a handful", "skew": "even", "devices": "unreliable", "rounds": "few",
    }  # fmt: skip
    assert not (tmp_path / "mlflow.db").exists(), "asking leaves nothing behind"


def test_what_is_not_known_is_named_with_what_it_may_cost() -> None:
    advice = advise_on(federated, federated.situation(clients="dozens"))
    assert {each.field for each in advice.unknown} == {"skew", "devices", "rounds"}
    assert all(each.matters >= 0 for each in advice.unknown)


def test_outside_the_measured_ground_there_is_no_range() -> None:
    advice = advise_on(federated, federated.situation(privacy="required"))
    assert advice.range is None and "Outside the measured ground" in advice.text


def test_a_model_that_cannot_fit_is_refused_whatever_is_said() -> None:
    with pytest.raises(ProjectError, match=r"larger needs .* GB of the 6\.0 GB"):
        advise_on(lora, lora.situation(model="larger", memory="8GB"))
    assert advise_on(lora, lora.situation(model="1-4B", memory="16GB")).configuration.to_yaml()


@pytest.mark.parametrize("speed", ["fast", "balanced", "quality"])
def test_samplers_keep_to_the_time_and_to_repeatability(speed: str) -> None:
    situation = diffusion.situation(speed=speed, repeatable="yes")
    advice = advise_on(diffusion, situation, ranges=False)
    assert advice.configuration.sampler != "ddpm"
    assert advice.configuration.evaluations <= {"fast": 5, "balanced": 12, "quality": 40}[speed]


def test_an_explanation_with_an_invented_number_is_not_shown() -> None:
    advice = advise_on(federated, federated.situation(clients="dozens"), ranges=False)
    assert checked_explanation(advice, "It reaches 99.87 % within 3 rounds.") == advice.text
    rate = advice.configuration.learning_rate
    assert checked_explanation(advice, f"A rate of {rate:g} was measured best.") != advice.text


def test_the_estimate_of_memory_is_near_the_measured_peak() -> None:
    from dspy_toolkit.projects.lora import measure

    for _, row in lora.runs.drop_duplicates(["rank", "layers"]).iterrows():
        parts = memory_bytes(SIZES["under 1B"], int(row["rank"]), int(row["layers"]), measure.BATCH, measure.TOKENS)
        assert sum(parts.values()) / 1e6 == pytest.approx(row["peak_mb"], rel=0.35)


def test_memory_grows_with_everything_and_checkpointing_saves() -> None:
    base = {"rank": 8, "layers": 8, "batch": 2, "length": 256}
    model = SIZES["1-4B"]
    total = sum(memory_bytes(model, **base).values())
    for name in base:
        assert sum(memory_bytes(model, **{**base, name: 2 * base[name]}).values()) > total
    assert sum(memory_bytes(model, **base, checkpoint=True).values()) < total


def test_a_models_sizes_are_read_from_its_config(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"config\.json does not say how large"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152, '
        '"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true, "quantization": {"bits": 4}}'
    )
    model = read_model(tmp_path)
    assert model.parameters == pytest.approx(134.5e6, rel=0.01)
    assert model.bits == 4


def test_rows_are_measured_as_mlx_lm_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "abcd"}\n\n{"prompt": "ab", "completion": "cdefg"}\n')
    assert row_lengths(file) == (2, 6.0)
    file.write_text('{"question": "x"}\n')
    with pytest.raises(DatasetError, match="line 1: neither text"):
        row_lengths(file)
    file.write_text("")
    with pytest.raises(DatasetError, match="has no rows"):
        row_lengths(file)
