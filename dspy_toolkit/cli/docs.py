"""`dspy-toolkit docs`: make the documentation that is made from the code, and check all of it. In a clone of the toolkit.

Not covered: what is made (`docs/build.py` of the clone, which is run), and the site (`make site`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import SettingsError

SCRIPT = Path("docs/build.py")
LIBRARY = Path("dspy_toolkit/__init__.py")
"""Beside the script in a clone of the toolkit: another project's `docs/build.py` is not run."""


def build(*, json: Json = False) -> None:
    """Write docs/reference/, SKILL.md and llms.txt anew, in a clone of the toolkit; then check all pages.

    Args:
        json: Print JSON, for scripts.
    """
    _run(json=json)


def check(*, json: Json = False) -> None:
    """Check the documentation of a clone, and write nothing.

    The exit code is 1 where a page is stale, a link is dead or an example is broken, for CI.

    Args:
        json: Print JSON, for scripts.
    """
    _run("--check", json=json)


def _run(*options: str, json: bool) -> None:
    """Run the clone's script with this Python; its output and exit code are the command's."""
    command = [sys.executable, str(find_clone() / SCRIPT), *options, *(["--json"] if json else [])]
    sys.stdout.flush()
    raise SystemExit(subprocess.run(command, check=False).returncode)


def find_clone() -> Path:
    """The working folder, or the nearest above it, that is a clone of the toolkit.

    Raises:
        SettingsError: none of them is.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / SCRIPT).is_file() and (folder / LIBRARY).is_file():
            return folder
    raise SettingsError(
        f"{here} is in no clone of the toolkit, and its documentation is made in one. Change to the clone's folder."
    )
