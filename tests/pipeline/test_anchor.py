"""From which champion losses are counted: what a version's manifest says, and who runs beside the champion."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.pipeline.release import release_baseline
from dspy_toolkit.registry import load_version
from dspy_toolkit.registry.manifest import manifest_bytes, read_manifest
from dspy_toolkit.run import Run
from dspy_toolkit.settings import Settings
from tests.optimizers.benches import Bench
from tests.optimizers.toys import HINT, by_instruction, question


@pytest.fixture
def bench(home: Settings, tmp_path: Path) -> Bench:
    return Bench(home, tmp_path / "project")


def cheaper(bench: Bench, run: Run, words: str) -> Run:
    """`run` with another instruction, as the gate would have promoted it for its tokens."""
    state = bench.toy.store.read_json(run.compiled.program)
    state["signature"]["instructions"] = words
    compiled = run.compiled.model_copy(update={"program": bench.toy.store.save_json(state)})
    passed = {"outcome": "promoted", "promoted_for": "tokens", "anchor": 2}
    undecided = Run(**{name: getattr(run, name) for name in Run.model_fields})
    return undecided.model_copy(
        update={
            "ref": bench.resolve(),
            "compiled": compiled,
            "comparison": run.comparison.model_copy(update=passed),
            "name": words,
        }
    )


def mostly_known(request: GenerationRequest) -> bool:
    """A model that answers three rows in four once it is told what to do, and all when it is told to be at its best."""
    asked = sum(map(ord, question(request))) % 4
    words = request.messages[0].content
    return by_instruction(request) and ("best" in words or asked > 0)


def test_a_version_says_for_what_it_was_promoted_and_from_where_losses_count(bench: Bench) -> None:
    bench.toy.knows = mostly_known
    release_baseline(bench.context(), bench.resolve())
    first, _ = bench.whole()
    settings = bench.toy.settings
    assert (first.decision.version, first.decision.promoted_for) == (2, "quality")
    assert first.comparison.anchor == 1
    _, manifest = load_version(settings, "colours@2")
    assert (manifest.promoted_for, manifest.anchor) == ("quality", None)

    second = bench.release(cheaper(bench, first, f"{HINT} Be short."))
    assert (second.decision.version, second.decision.promoted_for) == (3, "tokens")
    _, manifest = load_version(settings, "colours@3")
    assert (manifest.promoted_for, manifest.anchor) == ("tokens", 2)

    better = cheaper(bench, first, f"{HINT} Be at your best.")
    found = bench.compare(bench.resolve(), first.dataset, first.choice, better.compiled)
    assert found.anchor == 2, "not 3, the champion of the day"
    assert found.sealed is not None
    assert found.sealed.anchor_delta is not None and found.sealed.anchor_delta > 0


@pytest.mark.soak
def test_where_the_anchor_was_deleted_runs_go_on_and_say_so(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    from dspy_toolkit.tracking.mlflow_client import connect

    bench.toy.knows = mostly_known
    release_baseline(bench.context(), bench.resolve())
    first, _ = bench.whole()
    bench.release(cheaper(bench, first, f"{HINT} Be short."))
    connect(bench.toy.settings).delete_model_version("colours", "2")
    better = cheaper(bench, first, f"{HINT} Be at your best.")
    with caplog.at_level(logging.WARNING):
        found = bench.compare(bench.resolve(), first.dataset, first.choice, better.compiled)
    assert "The last champion promoted for quality is gone; cheaper candidates are not promoted" in caplog.text
    assert found.sealed is not None
    assert (found.sealed.anchor_low, found.sealed.tokens_ratio) == (None, 1)


def test_a_manifest_of_version_0_1_0_counts_as_quality(bench: Bench) -> None:
    release_baseline(bench.context(), bench.resolve())
    _, manifest = load_version(bench.toy.settings, "colours@1")
    written = (
        manifest_bytes(manifest).replace(b'  "promoted_for": "quality",\n', b"").replace(b'  "anchor": null,\n', b"")
    )
    assert b"anchor" not in written and b"promoted_for" not in written
    read = read_manifest(written, "manifest.json")
    assert (read.promoted_for, read.anchor) == ("quality", None)
