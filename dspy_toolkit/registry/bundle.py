"""A program version as one file, for another home, project or machine: written, and read with nothing believed.

    bundle.json                 the format's number, what it holds, the sha256 and size of every other part
    manifest.json               where the program comes from and how it scored; without the place of its project's file
    program.json                the program's state
    adapters/HASH/…             the three files of each adapter that it has
    rows/HASH.json              each set of rows among which it chooses demonstrations

It is a zip file; one machine writes equal programs as equal bytes. Reading runs no code and unpacks nothing: the parts are read into
memory, each by a name that is expected and up to a size that is allowed, and what is kept of them goes through the registry.
Refused are other members, a name given twice, links, encryption, other compressions, a part that is larger than it says or than
it may be, one whose sha256 is not the one written down, and a state with anything but what a predictor's state has.

Demonstrations are rows of the data, in clear: a bundle is as private as they are.

Not covered: keeping what was read (`importing`), other forms (`dspy_toolkit.registry.exports`).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from dspy_toolkit.errors import ProgramError, RegistryError
from dspy_toolkit.lm.ensembles import read_ensemble
from dspy_toolkit.lm.levers import LEVERS
from dspy_toolkit.lm.models.adapters import MOST_BYTES
from dspy_toolkit.lm.neighbors import read_neighbors
from dspy_toolkit.project.states import predictor_states, renamed
from dspy_toolkit.registry.manifest import (
    MANIFEST_FILE,
    PROGRAM_FILE,
    Manifest,
    manifest_bytes,
    program_bytes,
    read_manifest,
    read_program,
)
from dspy_toolkit.registry.parts import ADAPTERS, ROWS, adapters_of, part_files, row_sets_of
from dspy_toolkit.registry.parts import MOST_BYTES as MOST_ROWS
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

FORMAT = 1
INDEX_FILE = "bundle.json"
MOST_PARTS = 64
MOST = {INDEX_FILE: 2**20, MANIFEST_FILE: 32 * 2**20, PROGRAM_FILE: 64 * 2**20}
"""Bytes of a part that are read."""
LONGEST_BUNDLE = 5 * 2**30
STATE_KEYS = {"signature", "demos", "traces", "train", "lm", "fields", *LEVERS}
"""What a predictor's state may hold: DSPy sets any other key as an attribute, a method's name included."""

_ADAPTER = re.compile(rf"{ADAPTERS}/(?P<sha256>[0-9a-f]{{64}})/(?P<file>[a-z_]+\.[a-z]+)")
_ROWS = re.compile(rf"{ROWS}/(?P<sha256>[0-9a-f]{{64}})\.json")
_WHEN = (1980, 1, 1, 0, 0, 0)
"""The time of every member: equal programs give equal files."""

_NO_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError, OverflowError)
"""What zipfile raises for files that are damaged or made up; it has no common root for it."""


class Part(Frozen):
    """What the index says of one part."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Index(Frozen):
    """`bundle.json`."""

    bundle: Literal[1] = FORMAT
    project: str
    version: int | None
    """The version's number where it was made; None for a program that was no version."""
    toolkit: str
    """The version of the toolkit that wrote it."""
    parts: dict[str, Part] = Field(max_length=MOST_PARTS)


class Bundle(NamedTuple):
    """A bundle that was read and checked."""

    about: Index
    manifest: Manifest
    state: dict[str, Any]
    adapters: dict[str, dict[str, bytes]]
    """Adapter's hash → its files."""
    rows: dict[str, bytes]
    """A set of rows' hash → its bytes, which have it."""
    sha256: str
    """Of the whole file."""


def bundle_bytes(settings: Settings, state: dict[str, Any], manifest: Manifest, version: int | None) -> bytes:
    """The bytes of a bundle.

    Args:
        settings: whose home holds the program's adapters.
        state, manifest: as `load_version` gives them.
        version: its number here.

    Raises:
        RegistryError: the state is not plain JSON.
        ModelNotFound: an adapter is not in the home.
    """
    program = program_bytes(renamed(state, {}))  # without the address of a language model
    sha256 = hashlib.sha256(program).hexdigest()
    about = manifest.model_copy(update={"location": "", "program_sha256": sha256})
    parts = {MANIFEST_FILE: manifest_bytes(about), PROGRAM_FILE: program, **part_files(state, settings)}
    index = Index(
        project=manifest.project,
        version=version,
        toolkit=version_of("dspy-toolkit"),
        parts={name: Part(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in parts.items()},
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        head = json.dumps(index.model_dump(mode="json"), indent=2, sort_keys=True).encode()
        for name, data in {INDEX_FILE: head, **dict(sorted(parts.items()))}.items():
            member = zipfile.ZipInfo(name, _WHEN)
            member.external_attr = 0o100644 << 16
            # Weights are as good as random: packing them costs time and saves nothing.
            member.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            file.writestr(member, data)
    return made.getvalue()


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle. Nothing is written, and no code of it runs.

    Raises:
        RegistryError: it cannot be read, is no bundle, or holds what a bundle does not.
    """
    where = str(path)
    try:
        if (size := path.stat().st_size) > LONGEST_BUNDLE:
            raise RegistryError(f"{where} has {size:,} bytes; a bundle has at most {LONGEST_BUNDLE:,}.")
        with path.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            opened.seek(0)
            with zipfile.ZipFile(opened) as file:
                return _read(file, where, sha256)
    except OSError as error:
        raise RegistryError(f"{where} cannot be read: {error.strerror or error}. Name a bundle.") from error
    except _NO_ZIP as error:
        raise RegistryError(f"{where} is no bundle: {error}. Export it again.") from error


def _read(file: zipfile.ZipFile, where: str, sha256: str) -> Bundle:
    members = file.infolist()
    if len(members) > MOST_PARTS:
        raise RegistryError(f"{where} has {len(members):,} members; a bundle has at most {MOST_PARTS}.")
    by_name: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        by_name[_checked(member, by_name, where)] = member
    if missing := [name for name in MOST if name not in by_name]:
        raise RegistryError(f"{where} has no {missing[0]}, and is no bundle. Export it again.")
    index = _index(_contents(file, by_name.pop(INDEX_FILE), where), where)
    if by_name.keys() != index.parts.keys():
        odd = sorted(by_name.keys() ^ index.parts.keys())[0]
        raise RegistryError(f"{where}: its index and its members differ in {odd!r}. Export it again.")
    parts = {}
    for name, member in by_name.items():
        parts[name] = data = _contents(file, member, where)
        if hashlib.sha256(data).hexdigest() != index.parts[name].sha256:
            raise RegistryError(
                f"{where}: {name} is not what its index says: it was damaged or changed. Export it again."
            )
    manifest = read_manifest(parts[MANIFEST_FILE], f"{MANIFEST_FILE} of {where}")
    state = read_program(parts[PROGRAM_FILE], manifest, f"{PROGRAM_FILE} of {where}")
    if index.project != manifest.project:
        raise RegistryError(
            f"{where} says that it holds {index.project}, and holds {manifest.project}. Export it again."
        )
    check_state(state, where)
    adapters: dict[str, dict[str, bytes]] = {}
    rows: dict[str, bytes] = {}
    for name, data in parts.items():
        if found := _ADAPTER.fullmatch(name):
            adapters.setdefault(found["sha256"], {})[found["file"]] = data
        elif found := _ROWS.fullmatch(name):
            rows[found["sha256"]] = data
    asked = adapters_of(state)
    if unknown := [held for held in adapters if not any(held.startswith(each) for each in asked)]:
        raise RegistryError(f"{where} holds the adapter {unknown[0][:8]}, which its program does not have.")
    wanted = row_sets_of(state)
    for held, data in rows.items():
        if held not in wanted:
            raise RegistryError(f"{where} holds the rows {held[:8]}, which its program does not have.")
        if hashlib.sha256(data).hexdigest() != held:
            raise RegistryError(f"{where}: the rows {held[:8]} have another hash. Export it again.")
    return Bundle(index, manifest, state, adapters, rows, sha256)


def check_state(state: Mapping[str, Any], where: str) -> None:
    """Refuse a saved state that holds anything but predictors' states with what they may have. Raises RegistryError."""
    parts = predictor_states(state)
    if not parts:
        raise RegistryError(f"{where} holds no predictor's state. Export the program again.")
    others = set(state) - STATE_KEYS if "" in parts else set(state) - set(parts) - {"metadata"}
    if others:
        raise RegistryError(f"{where}: its program has {min(others)!r}, which is no part of a predictor's state.")
    for name, part in parts.items():
        called = f"the predictor {name}" if name else "its predictor"
        if odd := set(part) - STATE_KEYS:
            raise RegistryError(f"{where}: {called} has {min(odd)!r}, which is no part of a predictor's state.")
        signature, demos = part.get("signature"), part.get("demos")
        fields = signature.get("fields") if isinstance(signature, dict) else None
        right = isinstance(fields, list) and all(isinstance(field, dict) for field in fields)
        if not right or not isinstance(demos, list) or not all(isinstance(demo, dict) for demo in demos):
            raise RegistryError(f"{where}: {called} has no signature with fields, or no list of demonstrations.")
        try:
            ensemble = read_ensemble(part["ensemble"]) if part.get("ensemble") is not None else None
            for prompt in (part, *(member.model_dump() for member in (ensemble.members if ensemble else ()))):
                if prompt.get("neighbors") is not None:
                    read_neighbors(prompt["neighbors"])
        except ProgramError as error:
            raise RegistryError(f"{where}: {called}: {error}") from None


def _checked(member: zipfile.ZipInfo, known: Mapping[str, Any], where: str) -> str:
    """The name of a member that a bundle may have."""
    name = member.orig_filename  # as it is written, before zipfile has made a path of it
    # A name outside the list is refused whatever it is, so none can lead out of a folder.
    if name not in MOST and _most(name) is None:
        raise RegistryError(f"{where} holds {name[:100]!r}, which is no part of a bundle. Nothing was taken from it.")
    if name in known or name != member.filename:
        raise RegistryError(
            f"{where} holds {name!r} twice, or under a name that is not plain. Nothing was taken from it."
        )
    kind = member.external_attr >> 28
    if kind not in (0, 0o10) or member.flag_bits & 0x1:
        raise RegistryError(f"{where}: {name} is a link, no plain file, or encrypted. Nothing was taken from it.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RegistryError(
            f"{where}: {name} is packed by a method that bundles do not use. Nothing was taken from it."
        )
    return name


def _most(name: str) -> int | None:
    """How long a part may be; None for a name that none has."""
    if name in MOST:
        return MOST[name]
    if _ROWS.fullmatch(name):
        return MOST_ROWS
    found = _ADAPTER.fullmatch(name)
    return MOST_BYTES.get(found["file"]) if found else None


def _contents(file: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    most = _most(member.filename) or 0
    if member.file_size <= most:
        with file.open(member) as opened:
            # One byte more than allowed is enough to see that the size written down is not true.
            data = opened.read(most + 1)
        if len(data) <= most and len(data) == member.file_size:
            return data
    raise RegistryError(f"{where}: {member.filename} has more than {most:,} bytes, or not as many as it says.")


def _index(data: bytes, where: str) -> Index:
    try:
        return Index.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        hint = "Upgrade dspy-toolkit, or export it again." if name == "bundle" else "Export it again."
        raise RegistryError(f"{INDEX_FILE} of {where} cannot be used: {name}: {problem['msg']}. {hint}") from None
