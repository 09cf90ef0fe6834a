"""DSPy's cache of replies, in the home and keyed by all that can change a reply.

DSPy's own key is the request: the model's name, the messages, the grammar, temperature, seed and the like. To it belongs,
for an MLX model (whose name ends in the hash of its weights), who answers for it now, its engine's settings, this library's sources
between a request and its reply, and the packages below them; for any other model, its server and LiteLLM's version. An API
key and a time-out change no reply, and are left out.

A reply that another model gave in an MLX model's place is not kept: it would pass for that model's own for ever. Nor is a
remote model's that says nothing. A shard of the cache that turns out to be damaged is set aside, and its replies are asked
for again.

Not covered: the machine (a GPU rounds otherwise than a CPU), and a server that changes its model under one name.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import dspy
from dspy.clients import DISK_CACHE_LIMIT
from dspy.clients.cache import Cache

from dspy_toolkit.code_version import LIBRARY, sources_sha256, versions
from dspy_toolkit.durable import make_home, set_aside
from dspy_toolkit.errors import ModelError, StoreError
from dspy_toolkit.lm.litellm.errors import is_empty
from dspy_toolkit.lm.litellm.provider import find_chain
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.printable import without_password
from dspy_toolkit.settings import LMSettings, ModelSettings, Settings

OPEN_FILES = 4096
IN_MEMORY = 1024
"""Replies that are kept in memory beside the disk's: at some 8 kB each, DSPy's million would fill a server that runs for months."""
NO_SAY = frozenset({"api_key", "headers", "timeout"})
"""Of a request: what changes no reply. The headers are those of `remote`: what a caller has to say goes into `extra_headers`."""
NO_SAY_ENGINE = frozenset({"batch_size", "queue_size", "lease", "lease_seconds", "memory_limit_gb"})
"""Of an engine: when and beside what else a row is computed, and whether the model is loaded at all. That the rest of a batch
changes no reply is the engine's contract (where the machine rounds alike).
"""
BESIDE = (
    "adapter.py",
    "choices.py",
    "connection.py",
    "ensembles.py",
    "exporter.py",
    "formats",
    "grammar.py",
    "label_rules.py",
    "levers.py",
    "meter.py",
    "neighbors.py",
    "parsing.py",
    "remote.py",
    "reply_cache.py",
    "roles.py",
    "spans.py",
    "usage.py",
)
"""Of `lm`: what does not stand between a request and its reply. What these make is in the request itself, or is made of the
reply afterwards; an edit of a prompt's format leaves replies to other prompts in force. A new file counts until it is named.
"""
PACKAGES = ("litellm", "llguidance", "mlx", "mlx-lm", "numpy", "tokenizers", "torch", "transformers")
ADDRESSES = ("api_base", "base_url")

_lock = threading.RLock()


class ReplyCache(Cache):
    """DSPy's cache with a wider key. Safe from any thread."""

    def __init__(self, folder: str) -> None:
        """Args: folder: where it is kept; nothing but plain replies is unpickled from it."""
        try:
            super().__init__(True, True, folder, DISK_CACHE_LIMIT, IN_MEMORY, restrict_pickle=True)
        except sqlite3.DatabaseError:
            if not set_aside_damaged(Path(folder)):
                raise
            super().__init__(True, True, folder, DISK_CACHE_LIMIT, IN_MEMORY, restrict_pickle=True)

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any:
        """The reply that is kept, or None; also None where the shard that would hold it is damaged."""
        try:
            return super().get(request, ignored_args_for_cache_key)
        except sqlite3.DatabaseError:  # damage that opening did not meet
            with _lock:
                if set_aside_damaged(Path(str(self.disk_cache_dir))):
                    self.disk_cache = ReplyCache(str(self.disk_cache_dir)).disk_cache
            return None

    def cache_key(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> str:
        """DSPy's key of the request and of `answered_by`; its wish to ignore the server's address is not followed."""
        ignored = NO_SAY.union(ignored_args_for_cache_key or ()) - set(ADDRESSES)
        return super().cache_key({**request, "_answered_by": answered_by(request)}, sorted(ignored))

    def put(self, request: dict[str, Any], value: Any, *arguments: Any, **options: Any) -> None:
        """Keep a reply, unless another model gave it than the one whose replies this key holds."""
        asked = str(request.get("model"))
        signed = getattr(value, "system_fingerprint", None) or asked
        # The same weights on torch are the same model; both are under keys of their own, since they round differently.
        own = signed in (asked, f"torch/{asked.removeprefix(PREFIX)}") and signed == _answering(asked)[0]
        if own if asked.startswith(PREFIX) else not is_empty(value):
            super().put(request, value, *arguments, **options)


def set_aside_damaged(folder: Path) -> bool:
    """Set aside the shards of the cache in `folder` whose database is damaged; whether there was one."""
    damaged = damaged_shards(folder)
    for shard, why in damaged.items():
        set_aside(shard, why)
    return bool(damaged)


def damaged_shards(folder: Path) -> dict[Path, str]:
    """The shards of the cache in `folder` whose database is damaged → what SQLite says of it."""
    damaged: dict[Path, str] = {}
    for database in sorted(folder.glob("[0-9][0-9][0-9]/cache.db")):
        try:
            with closing(sqlite3.connect(database)) as opened:
                (said,) = opened.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError:  # locked, or not to be opened: no damage
            continue
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            damaged[database.parent] = " ".join(said.split())
    return damaged


def answered_by(request: dict[str, Any]) -> list[Any]:
    """What, beside the request itself, decides over its reply."""
    model = str(request.get("model", ""))
    if not model.startswith(PREFIX):
        return [server_of(model, *(request.get(name) for name in ADDRESSES)), versions().get("litellm")]
    return [*_answering(model), sources_sha256(LIBRARY / "lm", BESIDE), [versions().get(name) for name in PACKAGES]]


def server_of(model: str, *given: str | None) -> str:
    """Where a model that is no MLX model is asked, without a password: the address given, else that of its provider's
    environment variable (`OPENAI_API_BASE`, `OLLAMA_BASE_URL`), else empty for the provider's own.
    """
    provider = (model.partition("/")[0] if "/" in model else "openai").upper().replace("-", "_")
    known = (*given, *(os.environ.get(f"{provider}_{name.upper()}") for name in ADDRESSES))
    return without_password(next((address for address in known if address), "")).rstrip("/")


def engine_settings(settings: LMSettings) -> dict[str, Any]:
    """What of the settings of an engine changes a reply; a new setting counts until somebody says that it does not."""
    said = {*ModelSettings.model_fields, "backend", "fallbacks"}  # in the request, or in who answers
    return settings.model_dump(mode="json", exclude={*said, *NO_SAY_ENGINE})


def _answering(model: str) -> tuple[str, dict[str, Any]]:
    """Who answers for an MLX model now, and the settings of its engine."""
    try:
        chain = find_chain(model)
    except ModelError:  # a program's own LM, which nothing here serves
        return model, {}
    return chain.current.name, chain.engine_settings


def use_cache(settings: Settings) -> None:
    """Keep DSPy's cache of replies in `home/cache`.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = str(settings.path("cache"))
    with _lock:
        # Not `dspy.cache`: reading it for the first time makes a cache in the user's own folder.
        before = vars(dspy).get("cache")
        if isinstance(before, ReplyCache) and before.disk_cache_dir == folder:
            return
        allow_files()
        make_home(settings.path())
        try:
            os.makedirs(folder, exist_ok=True)
            if (disk := getattr(before, "disk_cache", None)) is not None and hasattr(disk, "close"):
                disk.close()
            setattr(dspy, "cache", ReplyCache(folder))  # noqa: B010  (made lazily, which the type checker does not know)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The cache of replies cannot be kept in {folder}: {error}. "
                "Free some space or make it writable, or set DSPY_TOOLKIT_HOME to a folder that is."
            ) from error


def allow_files() -> None:
    """Raise this process's soft limit of open files towards OPEN_FILES.

    DSPy's cache keeps 16 databases open in every thread: 16 threads hold some 350 files, and macOS allows 256 by default.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
