"""Folders, files and texts from elsewhere, made to do harm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import DatasetError, ProjectError, RegistryError
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.pipeline.source import find_start
from dspy_toolkit.project import load_project
from dspy_toolkit.registry import Manifest
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.run import Request
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Store
from tests.drills.conftest import Saw
from tests.registry.test_programs import write_version
from tests.test_printable import has_controls

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def folder_from_elsewhere(folder: Path, location: str, project: str) -> Path:
    """A saved program that names a place in its own folder as its project's."""
    manifest = Manifest(
        project=project,
        location=location,
        signature_fields={"text": "str", "label": "str"},
        signature_sha256="0" * 64,
        optimizer="bootstrap",
        model="mlx/x",
        metric="exact_match",
    )
    state = {"demos": [], "signature": {"instructions": "Do.", "fields": []}, "lm": None, "traces": [], "train": []}
    return write_version(folder, state, manifest)


@pytest.mark.drill(22, "a folder that names code of its own")
def test_a_hostile_folder(
    home: Settings, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saw: Saw
) -> None:
    started = time.monotonic()
    monkeypatch.chdir(tmp_path)
    names = ["evil", "evil:project", "evil.py", "evil.py:project", "{}/evil.py:project", "{}/evil.toml"]
    for number, name in enumerate(names):
        for field in ("project", "location"):
            place = tmp_path / f"{field}{number}"
            given = {"project": "questions", "location": "", field: name.format(place)}
            folder_from_elsewhere(place, given["location"], given["project"])
            for code in (place / "evil.py", tmp_path / "evil.py"):
                code.write_text(EVIL)
            (place / "evil.toml").write_text(project.read_text() + 'metric = "evil:metric"\n')
            with pytest.raises((RegistryError, ProjectError)) as caught:
                load_program(home, str(place))
            assert "\n" not in str(caught.value)
            with pytest.raises((RegistryError, ProjectError)):
                find_start(str(place), load_project("router"), home, Store(home.objects))
    command = [
        str(Path(sys.executable).with_name("dspy-toolkit")),
        "predict",
        str(tmp_path / "project3"),
        "--input",
        "text=hello",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert ended.returncode == 1 and ended.stderr.startswith("Error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert not list(tmp_path.rglob("ran"))
    assert "evil" not in sys.modules
    saw(f"{2 * len(names)} folders refused, a line each; nothing was imported", time.monotonic() - started)


def parquet(**columns: list[Any]) -> bytes:
    import io

    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer, index=False)
    return buffer.getvalue()


GOOD = b"text,label\n" + b"".join(b"Who met Ada %d?,person\nHow many %d?,number\n" % (n, n) for n in range(30))
LINES = b"".join(b'{"text": "Who met Ada %d?", "label": "person"}\n' % n for n in range(30))
FILES: dict[str, tuple[str, bytes]] = {
    "empty": ("rows.csv", b""),
    "only a header": ("rows.csv", b"text,label\n"),
    "zeros": ("rows.csv", b"\0" * 4096),
    "UTF-16": ("rows.csv", GOOD.decode().encode("utf-16")),
    "an open quote": ("rows.csv", GOOD + b'"open,person\n'),
    "too many cells": ("rows.csv", GOOD + b"a,b,c,d\n"),
    "a column twice": ("rows.csv", b"text,label,label\n" + GOOD.split(b"\n", 1)[1].replace(b"\n", b",x\n")),
    "no such column": ("rows.csv", GOOD.replace(b"text,label", b"txet,lable")),
    "a control character for a column": ("rows.csv", GOOD.replace(b"text,", b"text\x1b]0;x\x07,")),
    "nested too deep": (
        "rows.jsonl",
        LINES + b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b', "label": "person"}\n',
    ),
    "a key twice": ("rows.jsonl", LINES + b'{"text": "a", "text": "b", "label": "person"}\n'),
    "not JSON": ("rows.jsonl", LINES + b"{'text': 1}\n"),
    "NaN": ("rows.jsonl", LINES + b'{"text": NaN, "label": "person"}\n'),
    "half a surrogate": ("rows.jsonl", LINES + b'{"text": "\\ud800", "label": "person"}\n'),
    "a very long number": ("rows.jsonl", LINES + b'{"text": ' + b"9" * 5000 + b', "label": "person"}\n'),
    "a list": ("rows.jsonl", b"[1, 2]\n"),
    "no Parquet": ("rows.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1"),
    "half a Parquet file": ("rows.parquet", parquet(text=["a"] * 50, label=["person"] * 50)[:200]),
    "dates": ("rows.parquet", parquet(text=[datetime(2026, 1, n + 1) for n in range(28)], label=["person"] * 28)),
    "bytes": ("rows.parquet", parquet(text=[b"\xff\xfe"] * 40, label=["person"] * 40)),
}


@pytest.mark.drill(23, "files of rows that are damaged or made to do harm")
def test_hostile_files(home: Settings, project: Path, tmp_path: Path, saw: Saw) -> None:
    started, wrong = time.monotonic(), {}
    for number, (what, (name, content)) in enumerate(FILES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(content)
        location = folder / "questions.toml"
        location.write_text(project.read_text().replace("questions.csv", name))
        try:
            context = Context.open(str(location), home)
            prepare(context, resolve(context, Request(location=str(location))).data)
            wrong[what] = "taken as it is"
        except DatasetError as error:
            said = str(error)
            if has_controls(said) or "Traceback" in said:
                wrong[what] = said[:300]
        except Exception as error:  # the drill's question: which other one
            wrong[what] = f"{type(error).__name__}: {str(error)[:200]}"
    assert not wrong, json.dumps(wrong, indent=1)
    saw(
        f"{len(FILES)} files, each refused by a DatasetError that names the row or the column",
        time.monotonic() - started,
    )
