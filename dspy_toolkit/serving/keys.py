"""API keys: who may ask, and who may look behind.

A key is `dtk_ID_SECRET`. `home/serving/keys.json` holds of it the id, a name for people, the scopes and the secret's sha256; the
secret is 256 random bits, of which a plain hash can be published. It is compared in constant time, and an unknown id takes as
long as a wrong secret. The key itself is shown once, when it is made.

Scopes: `predict` asks programs and gives feedback; `admin` also reads metrics, verdicts and prompts.

Covered: making, listing, revoking, checking; a file that changed is read again. Not covered: transport (a proxy's TLS).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from dspy_toolkit.durable import make_home, write_file
from dspy_toolkit.errors import SettingsError, nearest
from dspy_toolkit.locks import held
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Frozen

Scope = Literal["predict", "admin"]
KEY = re.compile(r"dtk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
NOBODY = "0" * 64


class StoredKey(Frozen):
    """What is kept of a key."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    """Of the secret."""
    created: datetime

    def may(self, scope: Scope) -> bool:
        """Whether it has a scope; admin has all."""
        return scope in self.scopes or "admin" in self.scopes


_FILE: TypeAdapter[list[StoredKey]] = TypeAdapter(list[StoredKey])


def keys_file(settings: Settings) -> Path:
    """Where the keys of a home are."""
    return settings.path("serving", "keys.json")


def read_keys(path: Path) -> list[StoredKey]:
    """The keys in a file, oldest first; none where there is no file.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not what this command writes"
        raise SettingsError(f"{path} cannot be read: {why}. Restore it, or remove it and make new keys.") from None


def add_key(settings: Settings, name: str, scopes: Iterable[Scope] = ("predict",)) -> tuple[StoredKey, str]:
    """Make a key; what is kept of it, and the key itself, which nobody can find out again.

    Raises:
        SettingsError: the file cannot be read or written, or a key has this name.
    """
    path = keys_file(settings)
    make_home(settings.path(), SettingsError)
    with held(Path(f"{path}.lock"), refusal=SettingsError):
        there = read_keys(path)
        if any(key.name == name for key in there):
            raise SettingsError(f"There is a key called {name!r}. Take another name, or revoke that one.")
        secret = secrets.token_urlsafe(32)
        key = StoredKey(
            id=secrets.token_hex(4),
            name=name,
            scopes=tuple(dict.fromkeys(scopes)),
            sha256=_hash(secret),
            created=datetime.now(UTC),
        )
        write_file(path, _FILE.dump_json([*there, key], indent=1), SettingsError)
    return key, f"dtk_{key.id}_{secret}"


def revoke_key(settings: Settings, which: str) -> StoredKey:
    """Take a key away, by its name or its id. A server that runs refuses it from its next request on.

    Raises:
        SettingsError: there is none, or the file cannot be read or written.
    """
    path = keys_file(settings)
    with held(Path(f"{path}.lock"), refusal=SettingsError):
        there = read_keys(path)
        found = next((key for key in there if which in (key.name, key.id)), None)
        if found is None:
            raise SettingsError(f"There is no key {which!r}.{nearest(which, [key.name for key in there])}")
        write_file(path, _FILE.dump_json([key for key in there if key != found], indent=1), SettingsError)
    return found


class KeyRing:
    """The keys of a home, for a server. A file that changed is read again; one that became unreadable lets nobody in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, StoredKey] = {}
        self._ever = False
        self.refresh()

    @property
    def needed(self) -> bool:
        """Whether a request needs a key: once there was one, always, so that revoking the last opens nothing."""
        return self._ever

    def refresh(self) -> None:
        """Read the file again if it changed. Raises SettingsError when it cannot be read."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            stamp = None
        if stamp == self._seen:
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except SettingsError:
            self._keys, self._ever = {}, True
            raise
        # A file that is there was made by somebody who wanted keys, also where it is empty by now.
        self._ever, self._seen = self._ever or stamp is not None, stamp

    def find(self, text: str) -> StoredKey | None:
        """The key that a client sent, or None."""
        match = KEY.fullmatch(text)
        stored = self._keys.get(match[1]) if match else None
        same = hmac.compare_digest(_hash(match[2] if match else text), stored.sha256 if stored else NOBODY)
        return stored if same else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
