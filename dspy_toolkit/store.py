"""Content-addressed objects: what one step hands to the next.

An object is bytes under the name of their sha256. Saving the same bytes twice is one object; an object never changes;
`Ref` is all that travels. The root is a folder or any address that fsspec understands. Every object is checked against its
name when it is read: a damaged one is set aside with a warning, and then it is as one that somebody removed by hand, a
cache miss (`ObjectMissing`), never a fault.

Not covered: tidying up what no run needs any more.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from dspy_toolkit.durable import set_aside, write_file, writing
from dspy_toolkit.errors import ObjectMissing, StoreError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class Frozen(BaseModel):
    """A small frozen value that travels between steps: plain JSON, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ref(Frozen):
    """The name of an object in the store."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hex digest of the object's bytes."""
    kind: str = Field(pattern="^[a-z]+$")
    """What the bytes are: `parquet`, `json`, …; for people, and for the reader that opens them."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.sha256[:12]}"


def digest(*parts: Any) -> str:
    """sha256 of `parts`: bytes as they are, anything else as JSON with sorted keys. Stable across processes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, BaseModel):
            part = part.model_dump(mode="json")
        data = part if isinstance(part, bytes) else canonical_json(part)
        # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes. Raises TypeError for anything else."""
    return _CANONICAL.encode(value).encode()


class Store:
    """Objects under one root."""

    def __init__(self, root: str) -> None:
        """Args: root: a folder, or an fsspec address such as `s3://bucket/objects`. Made at the first save.

        Raises:
            StoreError: fsspec knows no such address, or a package is missing for it.
        """
        import fsspec

        self.root = str(root)
        # fsspec would take `::` and `?` in the name of a folder for its own syntax.
        folder = "://" not in self.root
        try:
            self._fs, self._path = (
                (fsspec.filesystem("file"), os.path.abspath(self.root)) if folder else fsspec.core.url_to_fs(self.root)
            )
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"The store {self.root} cannot be reached: {str(error).rstrip('.')}. Install what it needs (`pip install s3fs` for "
                "s3://), or correct store.address."
            ) from error
        self._local = "file" in self._fs.protocol

    def save(self, data: bytes, kind: str) -> Ref:
        """Save `data` and return its name. Raises StoreError when the root cannot be written."""
        ref = Ref(sha256=hashlib.sha256(data).hexdigest(), kind=kind)
        if self.exists(ref):
            return ref
        target = self._locate(ref)
        if self._local:
            write_file(Path(target), data)
        else:
            with writing(target):
                self._fs.pipe_file(target, data)
        return ref

    def read(self, ref: Ref) -> bytes:
        """The object's bytes. Raises ObjectMissing when it is not there whole, StoreError when it cannot be read."""
        if (data := self._whole(ref)) is None:
            raise ObjectMissing(f"The store {self.root} has no object {ref}. Run the same command again.")
        return data

    def exists(self, ref: Ref) -> bool:
        """Whether the object is there, and whole: it is read and checked."""
        return self._whole(ref) is not None

    def _whole(self, ref: Ref) -> bytes | None:
        target = self._locate(ref)
        try:
            data = self._fs.cat_file(target)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"Cannot read {target}: {error.strerror or error}. Check its permissions.") from error
        if hashlib.sha256(data).hexdigest() == ref.sha256:
            return data
        why = "its bytes are not those that were written" if data else "it is empty"
        if self._local:
            set_aside(Path(target), why)
        else:
            log.warning("%s is damaged (%s). It is removed, and made again.", target, why)
            self.delete(ref)
        return None

    def delete(self, ref: Ref) -> None:
        """Remove the object if it is there."""
        target = self._locate(ref)
        if self._fs.exists(target):
            self._fs.rm(target)

    def save_json(self, value: Any) -> Ref:
        """Save a JSON value (or a pydantic model) in its canonical form."""
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        return self.save(canonical_json(value), "json")

    def read_json(self, ref: Ref) -> Any:
        """The JSON value that `ref` names."""
        return json.loads(self.read(ref))

    def save_frame(self, frame: pd.DataFrame) -> Ref:
        """Save a table as Parquet (index dropped)."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return self.save(buffer.getvalue(), "parquet")

    def read_frame(self, ref: Ref) -> pd.DataFrame:
        """The table that `ref` names."""
        import pandas as pd

        return pd.read_parquet(io.BytesIO(self.read(ref)))

    def _locate(self, ref: Ref) -> str:
        return posixpath.join(self._path, ref.sha256[:2], f"{ref.sha256}.{ref.kind}")
