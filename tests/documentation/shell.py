"""The shell blocks of the pages written by hand, by section, and who runs each.

A section's blocks belong together, as at one terminal: what one sets, the next one has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("sh", "bash", "console", "shell")

NIGHTLY = ("README.md", "Every night")
UP = ("docs/deployments.md", "One command")
OWN_TESTS = (NIGHTLY, UP)
"""Run by tests of their own: tests/system/test_deployment.py and tests/system/test_make_up.py."""

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
    """README.md, CONTRIBUTING.md, docs/*.md and docs/projects/*.md, in this order."""
    return [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *sorted(root.glob("docs/*.md")),
        *sorted(root.glob("docs/projects/*.md")),
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


def _read(page: Path, root: Path) -> list[Section]:
    found = [Section(page.relative_to(root).as_posix(), "")]
    block: list[str] | None = None
    fence = kind = indent = ""
    for line in page.read_text(encoding="utf-8").splitlines():
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
