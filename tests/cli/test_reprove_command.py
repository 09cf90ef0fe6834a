"""`programs reprove` at a terminal: champions that hold and that fell, on a model behind a server, and what is started then."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, promote, save_version
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import runs as tracking
from tests.engines import own_engines
from tests.lm.openai_server import OpenAIServer
from tests.optimizers.toys import HINT, LABELS, TOML, field_in, records, right_answer, write_project

WRONG = dict(zip(LABELS, LABELS[-1:] + LABELS[:-1], strict=True))
THEN = {"comparison": {"candidate": {"mean": 0.95, "low": 0.9, "high": 1.0, "n": 40}}}


def say(body: dict[str, Any]) -> dict[str, str]:
    """Of the model `toy`: right for nine things of ten when it is told what to do, else wrong. Of any other: wrong."""
    text = field_in("text", str(body["messages"][-1]["content"]))
    right, number = right_answer(text), int(re.findall(r"\d+", text)[-1])
    told = body["model"] == "toy" and "colour of the thing" in str(body["messages"][0]["content"])
    return {"label": right if told and number % 10 else WRONG[right]}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    with OpenAIServer(say) as server, own_engines():
        for name, value in {"MODEL": "openai/toy", "API_BASE": server.address, "API_KEY": "none"}.items():
            monkeypatch.setenv(f"DSPY_TOOLKIT_LM__{name}", value)
        yield server


@pytest.fixture
def flow(home: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone's flow, which notes how it was started in the file `started`, and fails for the project `shades`."""
    flow = home.path("flows", "optimize_program.py")
    flow.parent.mkdir()
    (flow.parent / "__init__.py").touch()  # without it the repository's own flows would go before it
    flow.write_text(
        "import os, sys\n"
        "print('a table')\n"
        "with open('started', 'a') as file:\n"
        "    print(*sys.argv[1:], os.environ['DSPY_TOOLKIT_LM__MODEL'], file=file)\n"
        "sys.exit(3 if 'shades' in sys.argv[2] else 0)\n"
    )
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return home.path("started")


def champion_of(home: Settings, folder: Path, name: str, own: str, live: str) -> Path:
    """A project with the instructions `own`, and a champion with the instructions `live`."""
    toml = TOML.replace('"colours"', f'"{name}"').replace('"Classify."', f'"{own}"')
    place = write_project(folder / name, records(90), toml)
    program = load_project(str(place)).build()
    program.signature = program.signature.with_instructions(live)
    manifest = Manifest(
        project=name, location=str(place), optimizer="gepa", model="openai/toy", metric="exact_match", reports=THEN,
        signature_fields={field: str(kind) for field, kind in fields_of(program).items()},
        signature_sha256=signature_hash(program),
    )  # fmt: skip
    run_id = tracking.open_run(home, name, f"optimize {name}")
    promote(home, name, save_version(home, name, state_of(program), manifest, run_id))
    return place


def test_of_two_champions_one_holds_and_one_fell_and_is_optimized(
    command, home: Settings, model: OpenAIServer, flow: Path, tmp_path: Path
) -> None:
    champion_of(home, tmp_path, "colours", "Classify.", HINT)
    fallen = champion_of(home, tmp_path, "shades", HINT, "Say something.")
    ended = command("programs", "reprove", "--json", "--optimize", "fell")
    holds, fell = json.loads(ended.out)  # what the flow prints is not in it
    assert [(each["project"], each["outcome"]) for each in (holds, fell)] == [("colours", "holds"), ("shades", "fell")]
    assert holds["score_then"] == THEN["comparison"]["candidate"]
    assert 0.8 < holds["score"]["mean"] <= 1.0
    assert "It scored 0.950 when it was made (0.900 to 1.000), and scores 0.000 now." in fell["note"]
    # The one whose optimization failed decides.
    assert ended.code == 3 and "The optimization of shades failed, with exit code 3." in ended.err
    assert flow.read_text().splitlines() == [f"--project {fallen} openai/toy"]

    table = command("programs", "reprove", "colours", "shades")
    assert table.code == 1
    for text in ("holds", "fell", "0.950", "0.000"):
        assert text in table.out


def test_a_champion_falls_when_the_rows_mean_something_else(
    command, home: Settings, model: OpenAIServer, tmp_path: Path
) -> None:
    place = champion_of(home, tmp_path, "colours", "Classify.", HINT)
    assert command("programs", "reprove").code == 0
    changed = [row | {"label": WRONG[row["label"]]} for row in records(90, start=200)]
    write_project(place.parent, changed, place.read_text())
    ended = command("programs", "reprove", "--json")
    (fell,) = json.loads(ended.out)
    assert (ended.code, fell["outcome"]) == (1, "fell")
    assert fell["evidence"]["high"] < 0


def test_what_fell_on_another_model_is_optimized_on_that_model(
    command, home: Settings, model: OpenAIServer, flow: Path, tmp_path: Path
) -> None:
    place = champion_of(home, tmp_path, "colours", "Classify.", HINT)
    ended = command("programs", "reprove", "--model", "openai/other", "--optimize", "fell", "--json")
    (fell,) = json.loads(ended.out)
    assert (ended.code, fell["outcome"], fell["score"]["mean"]) == (1, "fell", 0.0)
    assert "failed" not in ended.err
    assert flow.read_text() == f"--project {place} openai/other\n"
