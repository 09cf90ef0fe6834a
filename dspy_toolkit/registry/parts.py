"""What a version holds beside the state and the manifest of its program: what the state names by a hash.

    adapters/HASH/…     each LoRA adapter of the program (`dspy_toolkit.lm.models.adapters`)
    rows/HASH.json      each set of rows among which it chooses demonstrations (`dspy_toolkit.lm.neighbors`)

Saving copies them into the version; loading sees that the home has them. What comes with a version is believed by its hash alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import ModelNotFound, ObjectMissing, RegistryError
from dspy_toolkit.lm.models.adapters import add_adapter, find_adapter
from dspy_toolkit.lm.neighbors import read_neighbors
from dspy_toolkit.project.states import predictor_states, prompts_of
from dspy_toolkit.store import Ref, Store

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

ADAPTERS = "adapters"
ROWS = "rows"
MOST_BYTES = 256 * 2**20
"""Of a set of rows that is read from a version."""


def part_files(state: dict[str, Any], settings: Settings) -> dict[str, bytes]:
    """The files that a program's version holds beside its state, by their paths in it.

    Raises:
        ModelNotFound: the home lacks an adapter.
        RegistryError: the store lacks rows.
    """
    files: dict[str, bytes] = {}
    for sha256 in adapters_of(state):
        folder = find_adapter(settings.path(), sha256).folder
        files |= {f"{ADAPTERS}/{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    for sha256 in row_sets_of(state):
        try:
            files[f"{ROWS}/{sha256}.json"] = Store(settings.objects).read(Ref(sha256=sha256, kind="json"))
        except ObjectMissing:
            raise RegistryError(
                f"The program chooses demonstrations among rows ({sha256[:8]}) that the store {settings.objects} lacks, so that it "
                "cannot be saved whole. Optimize it again."
            ) from None
    return files


def bring_parts(state: dict[str, Any], folder: Path, reference: str, settings: Settings) -> None:
    """See that the home has what a version's state names; `folder` holds its files.

    Raises:
        RegistryError: neither of the two has it, or what the folder has is something else.
        ProgramError: the state says no hash where one belongs.
    """
    for sha256 in adapters_of(state):
        with suppress(ModelNotFound):
            find_adapter(settings.path(), sha256)
            continue
        found = sorted((folder / ADAPTERS).glob(f"{sha256}*"))
        if not found:
            raise RegistryError(
                f"{reference} has the adapter {sha256[:8]}, which neither its files nor the home hold. Take another version, or "
                "optimize the program again."
            )
        if not (added := add_adapter(settings.path(), found[0])).sha256.startswith(sha256):
            raise RegistryError(
                f"{reference} should hold the adapter {sha256[:8]} and holds {added.sha256[:8]}. Export it again."
            )
    for sha256 in row_sets_of(state):
        _bring_rows(sha256, folder / ROWS / f"{sha256}.json", reference, Store(settings.objects))


def _bring_rows(sha256: str, file: Path, reference: str, store: Store) -> None:
    if store.exists(Ref(sha256=sha256, kind="json")):
        return
    try:
        with file.open("rb") as source:
            data = source.read(MOST_BYTES + 1)
    except OSError:
        raise RegistryError(
            f"{reference} chooses demonstrations among rows ({sha256[:8]}) that neither its files nor the store "
            f"{store.root} hold. Take another version, or optimize the program again."
        ) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RegistryError(
            f"The rows {sha256[:8]} of {reference} were damaged or changed: their bytes have another hash. Export it again."
        )
    store.save(data, "json")


def adapters_of(state: dict[str, Any]) -> list[str]:
    """The hashes of the adapters that a program has."""
    return sorted({str(prompt["adapter"]) for prompt in _prompts(state) if prompt.get("adapter")})


def row_sets_of(state: dict[str, Any]) -> list[str]:
    """The hashes of the sets of rows that a program has."""
    found = (prompt.get("neighbors") for prompt in _prompts(state))
    # It is checked: a state may come from elsewhere, and the hash becomes a path.
    return sorted({read_neighbors(each).rows for each in found if each})


def _prompts(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in predictor_states(state).values():
        yield from prompts_of(part)
