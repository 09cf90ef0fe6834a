"""The picture of the house in docs/architecture.md is that of the folders, in the order that the import contracts hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOM = re.compile(r"(?:^├─ |^└─ |^   (?=[a-z])| {3,})([a-z_]+)(?= {2,}\S)", re.MULTILINE)


def picture() -> str:
    return PAGE.split("```text\n")[1].split("```")[0]


def rooms() -> list[list[str]]:
    """The names of each line of the library's part, from the top."""
    inside = picture().split("│\n", 1)[1]
    return [names for line in inside.splitlines() if (names := ROOM.findall(line))]


def test_every_room_of_the_library_is_in_the_picture_and_no_other() -> None:
    library = ROOT / "dspy_toolkit"
    there = {path.stem for path in library.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    drawn = [name for line in rooms() for name in line]
    assert sorted(drawn) == sorted(there - {"__init__"})


def test_every_folder_above_the_library_is_in_the_picture() -> None:
    drawn = re.findall(r"^([a-z_]+) ", picture(), re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(drawn) == packages - {"tests"}


def test_the_picture_has_the_order_of_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [found["layers"] for found in contracts if found.get("containers") == ["dspy_toolkit"]]
    held = [name for layer in layers for name in layer.split(" | ")]
    drawn = [name for line in rooms() for name in line if name in held]
    place = {name: number for number, layer in enumerate(layers) for name in layer.split(" | ")}
    assert set(drawn) == set(held)
    assert [place[name] for name in drawn] == sorted(place[name] for name in drawn)


def test_the_way_of_the_data_names_the_steps_in_their_order() -> None:
    steps = re.findall(r"^([a-z]+) ", PAGE.split("```text\n")[2].split("```")[0], re.MULTILINE)
    flow = (ROOT / "flows" / "optimize_program.py").read_text()
    called = re.findall(
        r"\b(release_baseline|[a-z]+)_(?:project|dataset|program|optimizer|programs|run|version)\(", flow
    )
    assert [step.removeprefix("release_") for step in called if step not in ("optimize", "open")] == steps
