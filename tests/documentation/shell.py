"""The shell blocks of the pages, by section, and who runs each: pages written by hand, that of the flows, and the templates'.

A section's blocks belong together, as at one terminal: what one sets, the next one has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from dspy_toolkit.scaffold.writing import DOMAINS, READER, render

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("sh", "bash", "console", "shell")

NIGHTLY = ("README.md", "Every night")
UP = ("docs/deployments.md", "One command")
OWN_TESTS = (NIGHTLY, UP)
"""Run by tests of their own: tests/system/test_deployment.py and tests/system/test_make_up.py."""
QUICKSTART = "docs/quickstart.md"
"""A page whose sections are one way, and are run as one: tests/system/test_quickstart.py."""

NOT_RUN = {
    ("README.md", "Two commands"): (
        "`make test` is the suite that this is a test of; `make demo` is run by the section 'A run by hand'.",
        "docs/operations.md",
    ),
    ("README.md", "On a Mac, with a real model"): (
        "It needs a Mac and fetches gigabytes from the hub; the names of models and the folders of a hub are tested.",
        "tests/lm/models/test_weights.py",
    ),
    ("docs/deployments.md", "A project of your own"): (
        "It needs the server that another section's `make up` has started.",
        "tests/system/test_make_up.py",
    ),
    ("docs/efficientai.md", "In the EfficientAI-MLX-Toolkit"): (
        "It needs a clone of that toolkit; a loader that does what its does stands for it.",
        "tests/integrations/test_efficientai.py",
    ),
    ("docs/operations.md", "Without a clone"): (
        "It fills an environment from the package index for minutes.",
        "tests/system/test_wheel.py",
    ),
}
"""Sections that no test runs as they stand: why, and what stands for each. All others are run."""

TEMPLATES_NOT_RUN = dict.fromkeys(
    ("extract", "advise"),
    (
        "The stand-in for the model answers with one text, and these want several fields or an object.",
        "tests/scaffold/test_whole_way.py",
    ),
) | dict.fromkeys(
    ("lora", "diffusion", "clip", "federated"),
    (
        "It fine-tunes the model, which takes a real one and its time; other optimizers are run on these projects.",
        "tests/scaffold/test_whole_way.py",
    ),
)
"""Templates whose README.md is not run as it stands: why, and what stands for each. Those of all others are run."""


@dataclass(frozen=True)
class Section:
    """A heading of a page that has shell blocks."""

    page: str
    heading: str
    shell: list[str] = field(default_factory=list)
    toml: list[str] = field(default_factory=list)
    python: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}"

    @property
    def key(self) -> tuple[str, str]:
        """What names it in the tables of the tests."""
        return self.page, self.heading


def pages(root: Path) -> list[Path]:
    """README.md, CONTRIBUTING.md, docs/*.md, docs/projects/*.md and the page of the flows, in this order."""
    return [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *sorted(root.glob("docs/*.md")),
        *sorted(root.glob("docs/projects/*.md")),
        *root.glob("docs/reference/flows.md"),  # of the pages that are made, the one with commands to run
    ]


def sections(root: Path = ROOT) -> list[Section]:
    """Every section with a shell block, as the reader meets them."""
    return [section for section in all_sections(root) if section.shell]


def all_sections(root: Path = ROOT) -> list[Section]:
    """Every section of the pages."""
    return [section for page in pages(root) for section in _read(page, root)]


def to_run(root: Path = ROOT) -> list[Section]:
    """The sections that are run as they stand."""
    return [section for section in sections(root) if section.key not in NOT_RUN]


def has_own_test(section: Section) -> bool:
    """Whether it is run by a test of its own, or of its page."""
    return section.key in OWN_TESTS or section.page == QUICKSTART


def template_blocks(template: str, name: str, root: Path = ROOT) -> list[str]:
    """The shell blocks of a template's README.md, in a project called `name`."""
    folder = root / "dspy_toolkit/scaffold/templates"
    page = folder / (READER if template in DOMAINS else template) / "README.md.j2"
    text = render(page.read_text(encoding="utf-8"), name, {"template": template, **DOMAINS.get(template, {})})
    return [block for section in _sections(text, page.relative_to(root).as_posix()) for block in section.shell]


def _read(page: Path, root: Path) -> list[Section]:
    return _sections(page.read_text(encoding="utf-8"), page.relative_to(root).as_posix())


def _sections(text: str, page: str) -> list[Section]:
    found = [Section(page, "")]
    block: list[str] | None = None
    fence = kind = indent = ""
    for line in text.splitlines():
        if block is not None:
            if line.strip() == fence:
                kept = {"toml": found[-1].toml, "python": found[-1].python} | dict.fromkeys(SHELLS, found[-1].shell)
                if kind in kept:
                    kept[kind].append("\n".join(block))
                block = None
            else:
                block.append(line.removeprefix(indent))
        elif opening := re.match(r"( *)(`{3,}|~{3,})\s*(\w*)", line):
            indent, fence, kind = opening.groups()
            block = []
        elif heading := re.match(r"#+\s+(.*)", line):
            found.append(Section(found[0].page, heading[1].strip()))
    assert block is None, f"{page}: a block is not closed"
    return found
