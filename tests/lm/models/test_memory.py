"""How memory is divided: laws of the plan, machines as they report themselves, and what is given up under pressure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.display.memory_plan import memory_lines
from dspy_toolkit.errors import ModelError, ModelTooLarge
from dspy_toolkit.lm.models.hardware import Hardware, working_set_memory
from dspy_toolkit.lm.models.memory import (
    CACHE_LEAST,
    CALM_SECONDS,
    HELD,
    KV_LEAST,
    PREFIX_LEAST,
    MemoryPlan,
    Pressure,
    Shed,
    plan_memory,
    plan_model,
    token_bytes_of,
)
from dspy_toolkit.lm.models.weights import Weights, find_weights
from dspy_toolkit.settings import LMSettings

MIB, GIB = 2**20, 2**30
SMOLLM = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
QWEN_4B = {
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 2560,
    "head_dim": 128,
    "torch_dtype": "bfloat16",
}
QWEN_4B_BYTES = 2_263_022_529  # model.safetensors of a 4-bit conversion

# What `mx.device_info()` says on such machines.
M1_8GB = {"memory_size": 8 * GIB, "max_recommended_working_set_size": 5_726_633_984}
M2_MAX_64GB = {"memory_size": 64 * GIB, "max_recommended_working_set_size": 51_539_607_552}
H100 = {"architecture": "sm_90", "total_memory": 85_520_809_984, "free_memory": 84_900_000_000}


def machine(
    device: str, memory: int, available: int, info: dict[str, Any] | None = None, by: str = "machine"
) -> Hardware:
    working_set, free = working_set_memory(info or {}, 0)
    return Hardware(
        system="test",
        chip="test",
        cores=8,
        memory_bytes=memory,
        available_bytes=available,
        memory_limited_by=by,
        metal=device == "metal",
        cuda=device == "cuda",
        mps=False,
        device=device,
        working_set_bytes=working_set,
        working_set_free_bytes=free,
    )


def smollm(hardware: Hardware, **settings: Any) -> MemoryPlan:
    model = 630 * MIB if hardware.device == "cpu" else 94 * MIB
    return plan_memory(hardware, model, token_bytes_of(SMOLLM, hardware.device), LMSettings(**settings), 8192)


def qwen(hardware: Hardware, **settings: Any) -> MemoryPlan:
    return plan_memory(hardware, QWEN_4B_BYTES, token_bytes_of(QWEN_4B, hardware.device), LMSettings(**settings), 40960)


PARTS = ("have_bytes", "kv_budget_bytes", "prefix_budget_bytes", "cache_limit_bytes", "batch_width", "context_size")


@st.composite
def machines(draw: st.DrawFn) -> tuple[Hardware, Hardware]:
    """One machine twice, the second time with more memory available."""
    device = draw(st.sampled_from(["cpu", "metal", "cuda"]))
    memory = draw(st.integers(GIB, 512 * GIB))
    less, more = sorted((draw(st.integers(0, memory)), draw(st.integers(0, memory))))
    working_set = draw(st.integers(GIB, 512 * GIB))
    if device == "metal":
        info: list[dict[str, Any]] = [{"max_recommended_working_set_size": min(working_set, memory)}] * 2
    elif device == "cuda":
        free = sorted((draw(st.integers(0, working_set)), draw(st.integers(0, working_set))))
        info = [{"total_memory": working_set, "free_memory": each} for each in free]
    else:
        info = [{}, {}]
    return machine(device, memory, less, info[0]), machine(device, memory, more, info[1])


settings = st.builds(
    LMSettings,
    batch_size=st.integers(1, 256),
    max_tokens=st.integers(1, 8192),
    memory_limit_gb=st.none() | st.floats(0.1, 1024),
    kv_bits=st.sampled_from([None, 4, 8]),
)


def most_bytes(plan: MemoryPlan) -> int:
    """What everything takes when every part is full."""
    return plan.least_bytes + HELD * plan.kv_budget_bytes + plan.prefix_budget_bytes + plan.cache_limit_bytes


@given(
    machines=machines(),
    model=st.integers(0, 300 * GIB),
    token=st.just(0.0) | st.floats(1, 4 * MIB),
    settings=settings,
    context=st.integers(1, 2**20),
)
def test_the_laws_of_a_plan(
    machines: tuple[Hardware, Hardware], model: int, token: float, settings: LMSettings, context: int
) -> None:
    plans: list[MemoryPlan | None] = []
    for hardware in machines:
        try:
            plan = plan_memory(hardware, model, token, settings, context)
        except ModelTooLarge:
            plans.append(None)
            continue
        plans.append(plan)
        # All parts together fit into what there is.
        assert most_bytes(plan) <= plan.have_bytes
        if settings.memory_limit_gb is None:
            assert plan.have_bytes <= max(hardware.loadable_bytes - plan.reserve_bytes, 0)
        else:
            assert plan.have_bytes <= settings.memory_limit_gb * GIB
        # The running rows' part always holds one row of the context.
        assert plan.kv_budget_bytes >= math.floor(plan.context_size * token)
        assert min(context, 2048) <= plan.context_size <= context
        assert 1 <= plan.batch_width <= settings.batch_size
        assert (plan.wired_limit_bytes is not None) == (hardware.device == "metal")
        if plan.wired_limit_bytes is not None:
            assert plan.wired_limit_bytes <= (hardware.working_set_bytes or 0)
        assert all(line.why for line in memory_lines(plan, settings))
    less, more = plans
    # With more memory no part is smaller, and what fits still fits.
    if less is not None:
        assert more is not None
        for part in PARTS:
            assert getattr(less, part) <= getattr(more, part), part


def test_a_small_machine_has_the_amounts_that_the_proportion_comes_from() -> None:
    spare = HELD * KV_LEAST + PREFIX_LEAST + CACHE_LEAST
    plan = smollm(machine("cpu", 4 * GIB, 630 * MIB + 256 * MIB + spare + 256 * MIB))
    assert (plan.kv_budget_bytes, plan.prefix_budget_bytes) == (KV_LEAST, PREFIX_LEAST)
    assert plan.cache_limit_bytes == CACHE_LEAST
    assert most_bytes(plan) == plan.have_bytes


def test_an_m1_with_8_gb() -> None:
    hardware = machine("metal", M1_8GB["memory_size"], int(5.6 * GIB), M1_8GB)
    small = smollm(hardware)
    assert (small.batch_width, small.context_size) == (16, 8192)
    assert small.wired_limit_bytes == most_bytes(small) < M1_8GB["max_recommended_working_set_size"]
    large = qwen(hardware)
    # Its 40,960 tokens do not fit beside 2.1 GB of weights; a prompt with demonstrations does.
    assert 2048 <= large.context_size < 5000
    assert most_bytes(large) <= M1_8GB["max_recommended_working_set_size"] - large.reserve_bytes
    said = {line.name: line.why for line in memory_lines(large, LMSettings())}
    assert "of the model's 40960" in said["context"]
    assert "working set that Metal recommends" in said["for the engine"]
    with pytest.raises(ModelTooLarge, match=r"mlx/8bit needs about .* 5\.\d GB of weights, .* There are 4\.8 GB"):
        plan_memory(hardware, int(5.5 * GIB), 147456, LMSettings(), 40960, "mlx/8bit")


def test_a_busy_m1_leaves_what_others_use() -> None:
    hardware = machine("metal", M1_8GB["memory_size"], 3 * GIB, M1_8GB)
    assert most_bytes(smollm(hardware)) <= 3 * GIB - 512 * MIB
    with pytest.raises(ModelTooLarge, match="available"):
        qwen(hardware)


def test_an_m2_max_with_64_gb() -> None:
    plan = qwen(machine("metal", M2_MAX_64GB["memory_size"], 50 * GIB, M2_MAX_64GB))
    assert (plan.batch_width, plan.context_size) == (16, 40960)
    assert plan.kv_budget_bytes == 40960 * 147456
    # A full batch of prompts with many demonstrations, and no more than that.
    assert plan.prefix_budget_bytes == 16 * 1536 * 147456
    assert qwen(machine("metal", 64 * GIB, 50 * GIB, M2_MAX_64GB), batch_size=64).batch_width == 64


def test_a_container_with_4_gb() -> None:
    plan = smollm(machine("cpu", 4 * GIB, int(3.6 * GIB), by="cgroup"))
    assert most_bytes(plan) <= 3.6 * GIB - plan.reserve_bytes
    assert plan.kv_budget_bytes > KV_LEAST and plan.context_size == 8192
    assert plan.wired_limit_bytes is None
    assert "limited by the cgroup" in plan.origin
    with pytest.raises(ModelTooLarge):
        plan_memory(machine("cpu", 4 * GIB, int(3.6 * GIB)), 14 * GIB, 294912, LMSettings(), 40960)


def test_a_cuda_device_has_memory_of_its_own() -> None:
    plan = qwen(machine("cuda", 16 * GIB, GIB, H100))
    assert plan.have_bytes == H100["free_memory"] - GIB
    assert plan.wired_limit_bytes is None and plan.context_size == 40960


def test_settings_bound_the_plan() -> None:
    hardware = machine("cpu", 32 * GIB, 24 * GIB)
    assert smollm(hardware, batch_size=3).batch_width == 3
    limited = smollm(hardware, memory_limit_gb=2)
    assert most_bytes(limited) <= limited.have_bytes == 2 * GIB
    assert "lm.memory_limit_gb is 2" in limited.origin
    assert smollm(hardware, memory_limit_gb=1000).have_bytes == 32 * GIB
    assert smollm(hardware, kv_bits=8).kv_bits == 8
    with pytest.raises(ModelTooLarge, match="lower lm.max_tokens"):
        plan_memory(hardware, GIB, MIB, LMSettings(max_tokens=8192), 40960)


def test_little_memory_narrows_the_batch() -> None:
    settings = LMSettings(batch_size=64)
    plan = plan_memory(machine("cpu", 4 * GIB, 3 * GIB), GIB, 100 * 1024, settings, 40960)
    assert plan.batch_width == plan.kv_budget_bytes // (256 * 100 * 1024) < 64
    assert (
        "as many of 256 tokens as the KV cache holds"
        in {line.name: line.why for line in memory_lines(plan, settings)}["batch width"]
    )


@pytest.mark.parametrize(
    ("config", "device", "expected"),
    [
        (SMOLLM, "cpu", 30 * 2 * 3 * 64 * 4),
        (SMOLLM, "metal", 30 * 2 * 3 * 64 * 2),
        (QWEN_4B, "metal", 147456),
        ({**QWEN_4B, "torch_dtype": "float32"}, "metal", 2 * 147456),
        ({"text_config": QWEN_4B}, "cuda", 147456),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, "cpu", 2 * 2 * 64 * 4),
        (
            {"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
            "metal",
            61 * 576 * 2,
        ),
        ({"model_type": "mamba", "num_hidden_layers": 24}, "metal", 0),
        ({}, "cpu", 0),
    ],
)
def test_bytes_of_a_token(config: dict[str, Any], device: str, expected: int) -> None:
    assert token_bytes_of(config, device) == expected


def test_the_estimate_is_what_the_loaded_model_takes(model_home: Path) -> None:
    """Of the embedded model: its layers' heads, as mlx_lm builds them."""
    from mlx_lm.utils import load_model

    folder = find_weights("mlx/smollm2-135m", model_home).folder
    model, config = load_model(folder, lazy=True)
    attention = model.layers[0].self_attn
    width = attention.n_kv_heads * (576 // attention.n_heads)
    assert token_bytes_of(config, "cpu") == len(model.layers) * 2 * width * 4


def test_a_model_on_disk(model_home: Path) -> None:
    weights = find_weights("mlx/smollm2-135m", model_home)
    plan = plan_model(weights, machine("cpu", 16 * GIB, 8 * GIB), LMSettings())
    assert (plan.context_size, plan.token_bytes) == (8192, 46080)
    tight = machine("cpu", 16 * GIB, GIB)
    with pytest.raises(ModelTooLarge, match="mlx/smollm2-135m@.* needs about .* of weights"):
        plan_model(weights, tight, LMSettings())


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ModelError, match="cannot be read"):
        plan_model(Weights("mlx/x", tmp_path, "0" * 64), machine("metal", GIB, GIB), LMSettings())


# Under pressure.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(left: list[int]) -> tuple[Pressure, MemoryPlan, list[Shed], list[str]]:
    """What is said to each reading, one a second."""
    plan = smollm(machine("cpu", 16 * GIB, 12 * GIB))
    readings, clock, asked = iter(left), Clock(), []

    def read(device: str) -> int:
        asked.append(device)
        return next(readings)

    pressure = Pressure(plan, "cpu", read, clock)
    said: list[Shed] = []
    for _ in left:
        said.append(pressure.ask())
        clock.now += 1.0
    return pressure, plan, said, asked


def test_prefixes_go_first_then_width_by_halves(caplog: pytest.LogCaptureFixture) -> None:
    pressure, plan, said, _ = watch([100 * MIB] * 7)
    assert said == ["prefixes", "width", "width", "width", "width", "nothing", "nothing"]
    assert (pressure.width, pressure.prefix_budget_bytes) == (1, 0)
    assert "Memory is short (100.0 MB left)" in caplog.text
    assert plan.reserve_bytes == GIB


def test_enough_memory_changes_nothing() -> None:
    for left in (512 * MIB, 8 * GIB):
        pressure, plan, said, _ = watch([left] * 30)
        assert set(said) == {"nothing"}
        assert (pressure.width, pressure.prefix_budget_bytes) == (plan.batch_width, plan.prefix_budget_bytes)


def test_what_was_given_up_comes_back_when_it_is_calm() -> None:
    calm = int(CALM_SECONDS)
    pressure, plan, _, _ = watch([100 * MIB] * 3 + [8 * GIB] * (calm * 2 - 1))
    assert (pressure.width, pressure.prefix_budget_bytes) == (8, 0)
    pressure, plan, _, _ = watch([100 * MIB] * 3 + [8 * GIB] * (calm * 3 + 1))
    assert (pressure.width, pressure.prefix_budget_bytes) == (16, plan.prefix_budget_bytes)
    # A moment of less than the reserve starts the wait anew.
    pressure, _, _, _ = watch([100 * MIB] * 3 + ([8 * GIB] * (calm - 1) + [600 * MIB]) * 5)
    assert pressure.width == 4


def test_memory_is_looked_at_once_a_second() -> None:
    plan = smollm(machine("cpu", 16 * GIB, 12 * GIB))
    clock, asked = Clock(), []
    pressure = Pressure(plan, "cpu", lambda device: asked.append(device) or 8 * GIB, clock)
    for _ in range(1000):
        pressure.ask()
        clock.now += 0.005
    assert len(asked) == 5


@given(left=st.lists(st.integers(0, 2 * GIB), max_size=100))
def test_the_laws_of_pressure(left: list[int]) -> None:
    pressure, plan, said, asked = watch(left)
    assert 1 <= pressure.width <= plan.batch_width
    assert pressure.prefix_budget_bytes in (0, plan.prefix_budget_bytes)
    assert len(asked) == len(left)
    for reading, shed in zip(left, said, strict=True):
        assert shed == "nothing" or reading < plan.reserve_bytes // 2
    if "width" in said:
        assert said.index("prefixes") < said.index("width")


def test_macos_own_word_counts_beside_the_bytes() -> None:
    """Critical: something is given up each second. A warning: nothing is, and nothing comes back."""
    plan, clock, calm = smollm(machine("metal", 16 * GIB, 12 * GIB)), Clock(), int(CALM_SECONDS)
    levels = iter([1, 4, 4, *[2] * 30, *[1] * (calm + 1)])
    pressure = Pressure(plan, "metal", lambda device: 8 * GIB, clock, lambda: next(levels))
    said, widths = [], []
    for _ in range(1 + 2 + 30 + calm + 1):
        said.append(pressure.ask())
        widths.append(pressure.width)
        clock.now += 1.0
    assert said[:3] == ["nothing", "prefixes", "width"]
    assert set(said[3:]) == {"nothing"}
    assert widths[2] == widths[32] == plan.batch_width // 2
    assert widths[-1] == plan.batch_width


def test_this_machine_is_not_short() -> None:
    """The real reader, once."""
    plan = smollm(machine("cpu", 16 * GIB, 12 * GIB)).model_copy(update={"reserve_bytes": MIB})
    assert Pressure(plan, "cpu").ask() == "nothing"
