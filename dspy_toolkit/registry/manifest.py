"""The manifest of a program version: `manifest.json`, beside `program.json`.

Covered: the fields, writing them as JSON for people, reading them back with the reason when they cannot be used. The
manifest is written after the program and holds its sha256, so its existence means that the version is whole.

A manifest of an earlier schema is read as one of today's (`migrations`).

Not covered: where the version lies (`versions`), what is live (`promotion`).
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry.migrations import migrated
from dspy_toolkit.store import Frozen, canonical_json

SCHEMA_VERSION: Literal[2] = 2
PROGRAM_FILE = "program.json"
MANIFEST_FILE = "manifest.json"


class KeptVerdict(Frozen):
    """What the gate said of a program, and of which comparison."""

    outcome: Literal["promoted", "refused", "unchanged"]
    reason: str
    """One sentence for people."""
    champion: int | None
    """The version that it was compared with; None: nothing was live."""
    champion_sha256: str = ""
    """Of that version's program, by which another home knows it; empty where it is not known."""


class Imported(Frozen):
    """The bundle that a version came in."""

    project: str
    """What the project was called there."""
    version: int | None
    """Its number there."""
    bundle_sha256: str


class Manifest(Frozen):
    """Where a program came from, what it was trained on, and how it scored."""

    schema_version: Literal[2] = SCHEMA_VERSION
    project: str
    location: str = ""
    """Where the project was found (`references.lasting_location`); empty: by its name."""
    signature_fields: dict[str, str]
    """Field name → the annotation as text, over all of the program's predictors."""
    signature_sha256: str
    optimizer: str
    """`bootstrap`, `mipro`, `gepa`, or how else the program was made."""
    optimizer_settings: dict[str, Any] = {}
    model: str
    """The task model's name with its weights hash."""
    split_sha256: dict[str, str] = {}
    """Split name (train, val, sealed) → the sha256 of its Parquet object."""
    trained_rows: tuple[str, ...] = ()
    """`_row` hashes of all rows that this program, or an ancestor, was tuned on: never test it on one of them."""
    metric: str
    """The metric's name."""
    reports: dict[str, Any] = {}
    """What was measured, by name: `Report` and `Comparison` values as JSON."""
    packages: dict[str, str] = {}
    """Package → its version at compile time."""
    parent: int | str | None = None
    """What the optimizer started from: a version of this project, `project@3` of another; None: the project's own program."""
    previous_champion: int | None = None
    """The champion when this version was saved; a rollback uses the tag `previous`, written at promotion."""
    promoted_for: Literal["quality", "tokens"] = "quality"
    """Why it passed the gate: better answers, or nearly as good ones from fewer tokens. Versions of 0.1.0 count as quality."""
    anchor: int | None = None
    """Of one promoted for tokens, the version that was last promoted for quality, from which losses are counted."""
    verdict: KeptVerdict | None = None
    """Of the gate; None for a program that was never compared, such as the project's own."""
    imported: Imported | None = None
    """Where it comes from; None: it was made in this home."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    program_sha256: str = ""
    """Hex digest of program.json's bytes; filled when the version is saved."""


def program_bytes(state: dict[str, Any]) -> bytes:
    """The bytes of program.json: canonical JSON, so equal programs have equal hashes.

    Raises:
        RegistryError: the state holds something that is not JSON. A program's `dump_state(json_mode=True)` does not.
    """
    try:
        return canonical_json(state)
    except (TypeError, ValueError) as error:
        raise RegistryError(f"The program's state is not plain JSON: {error}. Dump it with json_mode=True.") from error


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes of manifest.json, indented for people. A `SecretStr` inside a dictionary is written as a mask.

    Raises:
        RegistryError: a dictionary holds something that is not JSON, such as NaN.
    """
    try:
        value = manifest.model_dump(mode="json")
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # pydantic's serialization error is one too
        raise RegistryError(f"The manifest of {manifest.project} is not plain JSON: {error}.") from error


def read_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`; `where` names it in an error.

    Raises:
        RegistryError: not JSON, written by a later toolkit, or fields that are missing, unknown or of the wrong type.
    """
    value = read_object(data, where)
    version = value.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RegistryError(
            f"{where} has schema version {version} and this dspy-toolkit reads up to {SCHEMA_VERSION}. "
            "Run `pip install --upgrade dspy-toolkit`."
        )
    try:
        if version != SCHEMA_VERSION:
            # As JSON, by whose rules a text is a time and a list a tuple.
            data = json.dumps(migrated(value, SCHEMA_VERSION)).encode()
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise RegistryError(f"{where} is not a manifest: {field}: {problem['msg']}. Save the version again.") from None


def read_program(data: bytes, manifest: Manifest, where: str) -> dict[str, Any]:
    """The program state in `data`, once its sha256 is the one that the manifest gives.

    Raises:
        RegistryError: the bytes were changed after they were saved, or are not a JSON object.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.program_sha256:
        raise RegistryError(
            f"{where} was changed after it was saved: its sha256 begins {found[:12]}, "
            f"its manifest says {manifest.program_sha256[:12] or 'nothing'}. "
            f"Run `dspy-toolkit programs list {manifest.project}` and take another version."
        )
    return read_object(data, where)


def read_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises RegistryError for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{where} is not JSON: {error}. Nothing but JSON is read.") from None
    if not isinstance(value, dict):
        raise RegistryError(f"{where} holds a JSON {type(value).__name__}; a JSON object was expected.")
    return value
