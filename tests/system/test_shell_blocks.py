"""What README.md, docs/ and the templates' README.md say, done: every section's shell blocks as they stand, in a fresh
clone with an empty HOME.

In place of the embedded model the blocks have a server on loopback that speaks OpenAI's API: what they are about is the
commands. Sections are run in the order of the pages, in one clone, as a reader would, and a later one may use what an
earlier one made. The README's "Every night" is run by test_deployment.py, `make up` by test_make_up.py, docs/quickstart.md by
test_quickstart.py, and `NOT_RUN` and `TEMPLATES_NOT_RUN` of tests/documentation/shell.py list what is not run, and why.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_toolkit.scaffold import TEMPLATES
from tests.documentation.shell import TEMPLATES_NOT_RUN, Section, has_own_test, sections, template_blocks, to_run
from tests.lm.openai_server import OpenAIServer
from tests.samples import sample
from tests.system.fresh_clone import Model, Terminal, environment, make_clone, terminal

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ANSWERS = {("docs/operations.md", "MLflow"): 5000}
"""Sections that end in a server, with the port at which it must answer; it is then stopped."""


@pytest.fixture(scope="module")
def model() -> Iterator[OpenAIServer]:
    with OpenAIServer(Model()) as server:
        yield server


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("fresh") / "a clone"
    make_clone(here)
    return here


@pytest.fixture
def reader(clone: Path, tmp_path: Path, model: OpenAIServer) -> dict[str, str]:
    """The environment of one who has just cloned."""
    return environment(clone, tmp_path / "HOME", model.address)


def write_examples(section: Section, clone: Path) -> str:
    """Write the project's file that the section shows to where its commands look for it; the command that runs its Python."""
    folder = clone / "path/to"
    for text in section.toml:
        if 'name = "questions"' in text:
            (folder / "questions.toml").write_text(text + "\n")
    if section.page != "README.md" or not section.python:  # other pages show pieces, which make check compiles
        return ""
    (folder / "example.py").write_text("\n".join(section.python))
    return "\ncd path/to && ../../.venv/bin/python example.py"


def answered(at: Terminal, port: int, seconds: float = 400) -> bool:
    """Whether a page is there before the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and at.shell.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{at.ports[port]}/", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    return False


@pytest.mark.parametrize("section", [each for each in to_run() if not has_own_test(each)], ids=str)
def test_a_section_does_what_it_says(section: Section, clone: Path, reader: dict[str, str], tmp_path: Path) -> None:
    committed = {each.key: each for each in sections(clone)}
    assert committed.get(section.key) == section, "The clone has what is committed: commit first."
    script = "\n\n".join(section.shell) + write_examples(section, clone)
    if section.page.startswith("docs/"):  # whose commands are given as if it were on the path
        reader["PATH"] = os.pathsep.join([str(clone / ".venv/bin"), reader["PATH"]])
    with terminal(script, clone, reader, tmp_path / "log") as at:
        if section.key in ANSWERS:
            assert answered(at, ANSWERS[section.key]), at.printed
        else:
            at.wait(600)
    assert_nothing_went_wrong(at)


@pytest.mark.parametrize("template", sample([each for each in TEMPLATES if each not in TEMPLATES_NOT_RUN], "classify"))
def test_a_templates_readme_does_what_it_says(
    template: str, clone: Path, reader: dict[str, str], tmp_path: Path
) -> None:
    reader["PATH"] = os.pathsep.join([str(clone / ".venv/bin"), reader["PATH"]])
    begin = f"dspy-toolkit projects new my-{template} --template {template}"
    script = "\n".join([begin, *template_blocks(template, f"my-{template}", clone)])
    with terminal(script, clone, reader, tmp_path / "log") as at:
        at.wait(600)
    assert_nothing_went_wrong(at)
    assert "2 passed" in at.printed


def assert_nothing_went_wrong(at: Terminal) -> None:
    """In what a script printed that has ended."""
    print(at.printed)
    assert "Traceback" not in at.printed
    assert "Error: " not in at.printed
