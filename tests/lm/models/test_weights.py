"""Finding, naming, converting and checking models on disk."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspy_toolkit.errors import ModelError, ModelNotFound, StoreError
from dspy_toolkit.lm import connect
from dspy_toolkit.lm.connection import full_name
from dspy_toolkit.lm.models import embedded, hashes
from dspy_toolkit.lm.models.hardware import Hardware
from dspy_toolkit.lm.models.weights import find_weights, hash_weights, needed_bytes
from dspy_toolkit.settings import Settings

MODEL = "mlx/smollm2-135m"


def machine(device: str, available: float) -> Hardware:
    size = int(available * 2**30)
    return Hardware(
        system="Linux x86_64",
        chip="test",
        cores=2,
        memory_bytes=size,
        available_bytes=size,
        memory_limited_by="machine",
        metal=device == "metal",
        cuda=False,
        mps=False,
        device=device,
    )


@pytest.fixture
def home(model_home: Path, tmp_path: Path) -> Path:
    """A copy of the home with the converted model, to be damaged."""
    shutil.copytree(model_home / "models", tmp_path / "models")
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "a@tiny model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_embedded_model(home: Path) -> None:
    found = find_weights(MODEL, home)
    assert found.name == f"{MODEL}@{found.sha256[:8]}"
    assert found.folder == home / "models" / "smollm2-135m"
    assert find_weights(found.name, home) == found
    assert full_name(Settings().lm.model, Settings(home=home)) == found.name
    origin = json.loads((found.folder / "origin.json").read_text())
    assert set(origin["files"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not list((home / "models").glob("*.partial"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "origin.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_conversion_is_made_again(
    home: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = find_weights(MODEL, home)
    good = home / "good"
    shutil.copytree(before.folder, good)
    file = before.folder / name
    if damage == "gone":
        file.unlink()
    else:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)

    def again(gguf: Path, folder: Path) -> None:  # the conversion itself has its own test
        for path in good.iterdir():
            if path.name != "origin.json":
                shutil.copy(path, folder)

    monkeypatch.setattr(embedded, "_on_own_thread", again)
    assert find_weights(MODEL, home).sha256 == before.sha256
    (record,) = caplog.records
    assert "is damaged" in record.getMessage() and len(list((home / "models").glob("smollm2-135m.damaged-*"))) == 1


def test_converting_twice_gives_the_same_bytes(model_home: Path, tmp_path: Path) -> None:
    assert find_weights(MODEL, tmp_path).sha256 == find_weights(MODEL, model_home).sha256


def test_two_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = home / "good"
    (home / "models" / "smollm2-135m").rename(good)

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(folder)
        for path in good.iterdir():
            if path.name != "origin.json":
                shutil.copy(path, folder)

    converted: list[Path] = []
    monkeypatch.setattr(embedded, "_on_own_thread", convert)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: embedded.convert_embedded(home / "models"), range(4)))
    assert folders == {home / "models" / "smollm2-135m"}
    assert len(converted) == 1, "the others wait: nobody removes a folder that another one reads"
    assert not list((home / "models").glob("*.partial"))


def test_a_file_that_is_no_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a gguf")
    monkeypatch.setattr(embedded, "find_gguf", lambda: broken)
    with pytest.raises(ModelError, match="cannot be converted"):
        find_weights(MODEL, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["smollm2-135m.lock"]


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="Cannot write .*DSPY_TOOLKIT_HOME"):
        find_weights(MODEL, tmp_path / "home")
    with pytest.raises(StoreError, match="cache of replies .*DSPY_TOOLKIT_HOME"):
        connect(Settings(home=tmp_path / "home"))


def test_a_folder(tiny: Path, tmp_path: Path) -> None:
    found = find_weights(f"mlx/{tiny}", tmp_path)
    assert found.name == f"mlx/a@tiny model@{found.sha256[:8]}"
    assert find_weights(f"mlx/{tiny}@{found.sha256[:12]}", tmp_path) == found
    (tiny / "chat_template.jinja").write_text("{{ messages }}")
    assert find_weights(f"mlx/{tiny}", tmp_path).sha256 != found.sha256
    with pytest.raises(ModelNotFound, match=rf"have hash [0-9a-f]{{8}}, not {found.sha256[:8]}"):
        find_weights(f"mlx/{tiny}@{found.sha256[:8]}", tmp_path)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_that_lacks_something(tiny: Path, tmp_path: Path, missing: str) -> None:
    (tiny / missing).unlink()
    with pytest.raises(ModelNotFound, match=r"has no .*mlx_lm\.convert"):
        find_weights(f"mlx/{tiny}", tmp_path)


@pytest.mark.parametrize("name", ["mlx/typo", "mlx/", "mlx/a/b/c", "mlx/no-such-owner/no-such-model"])
def test_a_model_that_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="smollm2-135m") as caught:
        connect(Settings(home=tmp_path, lm={"model": name}))  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)


def test_hashes_are_remembered(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered, hashed = tmp_path / "hashes.json", []
    real = hashes.hash_file
    monkeypatch.setattr(hashes, "hash_file", lambda path: hashed.append(path.name) or real(path))
    first = hash_weights(tiny, remembered)
    assert hash_weights(tiny, remembered) == first
    assert sorted(hashed) == ["config.json", "model.safetensors"]
    (tiny / "model.safetensors").write_bytes(b"y" * 1001)
    second = hash_weights(tiny, remembered)
    assert second != first
    assert hashed[2:] == ["model.safetensors"]
    for damage in ("{", "[1]", "7"):
        remembered.write_text(damage)
        assert hash_weights(tiny, remembered) == second
    assert hash_weights(tiny, tiny / "config.json" / "hashes.json") == second  # cannot be written


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("special_tokens_map.json", True),
        ("added_tokens.json", True),
        ("merges.txt", True),
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("README.md", False),
        ("origin.json", False),
        ("optimizer.safetensors", False),
    ],
)
def test_every_file_that_a_model_is_made_of_counts(tiny: Path, tmp_path: Path, name: str, counts: bool) -> None:
    seen = []
    for content in (None, b"one", b"another"):
        if content is not None:
            (tiny / name).write_bytes(content)
        seen.append(hash_weights(tiny, tmp_path / "hashes.json"))
    assert len(set(seen)) == (3 if counts else 1)


@pytest.mark.parametrize(
    ("config", "device", "times"),
    [
        ({}, "metal", 1),
        ({}, "cpu", 2),
        ({"quantization": {"bits": 4}}, "cpu", 6.4),
        ({"quantization_config": {"bits": 8}}, "cpu", 32 / 9),
        ({"quantization": {"bits": 4}}, "cuda", 1),
    ],
)
def test_bytes_in_memory(tiny: Path, config: dict[str, object], device: str, times: float) -> None:
    (tiny / "config.json").write_text(json.dumps(config))
    assert needed_bytes(tiny, device) == int(1000 * times)


def test_a_config_that_cannot_be_read(tiny: Path) -> None:
    (tiny / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json cannot be read"):
        needed_bytes(tiny, "cpu")
