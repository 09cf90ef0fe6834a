"""The page as a file."""

from __future__ import annotations

import uuid
from pathlib import Path

from dspy_toolkit.errors import StoreError


def keep_report(path: Path, page: str) -> None:
    """Write `page` to `path`, whole or not at all; folders on the way are made.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        # A full disk must not leave half a page behind; the removal may fail for the same reason.
        try:
            partial.unlink(missing_ok=True)
        except OSError as removal:
            error.add_note(f"and {partial} could not be removed: {removal}")
        raise StoreError(
            f"Cannot write the report {path}: {error.strerror or error}. "
            "Free some space or make it writable, or set DSPY_TOOLKIT_HOME to a folder that is."
        ) from error
