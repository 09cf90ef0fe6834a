"""docs/quickstart.md as it stands, section after section at the terminal of one who has just cloned: what it leads to, and how soon.

In place of the embedded model the commands have a server on loopback that gives the answers when it is shown how.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from dspy_toolkit.registry import champions, load_version
from dspy_toolkit.settings import load_settings
from tests.documentation.shell import QUICKSTART, sections
from tests.lm.openai_server import OpenAIServer
from tests.system.fresh_clone import Model, environment, make_clone, terminal

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

LIMIT = 600
"""Seconds from `projects new` to the answer elsewhere."""
ANSWER = re.compile(r"^\W*topic\W+(billing|technical|account)\W*$", re.MULTILINE)


def test_a_new_project_is_promoted_and_used_elsewhere_within_ten_minutes(tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    make_clone(clone)
    printed: dict[str, str] = {}
    with OpenAIServer(Model()) as model:
        reader = environment(clone, tmp_path / "HOME", model.address)
        reader["PATH"] = os.pathsep.join([str(clone / ".venv/bin"), reader["PATH"]])
        begin = time.monotonic()
        for number, section in enumerate(each for each in sections(clone) if each.page == QUICKSTART):
            with terminal("\n\n".join(section.shell), clone, reader, tmp_path / f"log {number}") as at:
                printed[section.heading] = at.wait(LIMIT)
        took = time.monotonic() - begin
    assert list(printed) == ["A new project", "A better program", "Used", "Elsewhere"]
    assert took < LIMIT
    assert not [heading for heading, text in printed.items() if "Traceback" in text or "Error: " in text], printed

    here, elsewhere = (load_settings(home=clone / folder) for folder in (".dspy-toolkit", "another-home"))
    assert [version.version for version in champions(here, "triage")] == [2, 1]
    state, manifest = load_version(here, "triage@champion")
    assert manifest.optimizer == "labelled" and state["demos"]
    assert manifest.verdict is not None and (manifest.verdict.outcome, manifest.verdict.champion) == ("promoted", 1)

    assert [version.version for version in champions(elsewhere, "triage")] == [1]
    there, brought = load_version(elsewhere, "triage@champion")
    assert there == state
    assert brought.verdict is not None and brought.verdict.outcome == "promoted"
    assert brought.imported is not None
    assert (brought.imported.project, brought.imported.version) == ("triage", 2)
    for heading in ("Used", "Elsewhere"):
        assert ANSWER.search(printed[heading]), printed[heading]
