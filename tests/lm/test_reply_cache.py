"""The cache of replies: what makes it ask again, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.code_version import LIBRARY
from dspy_toolkit.errors import EngineFailed
from dspy_toolkit.lm import reply_cache
from dspy_toolkit.lm.connection import connect
from dspy_toolkit.lm.litellm.fallback import Chain
from dspy_toolkit.lm.reply_cache import BESIDE, ReplyCache, server_of, use_cache
from dspy_toolkit.settings import LMSettings, Settings
from tests.lm.chains import Chains, Elsewhere, registered

pytestmark = pytest.mark.usefixtures("engines_of_its_own")
REMOTE = {"model": "acme/big", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.0}
IGNORED = ["api_key", "api_base", "base_url"]


@pytest.fixture
def key(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """The key of a request to `acme/big`, or of a given one, as DSPy asks for it."""
    cache = ReplyCache(str(tmp_path / "cache"))
    yield lambda request=REMOTE, **changes: cache.cache_key({**request, **changes}, IGNORED)
    cache.disk_cache.close()


def test_another_server_is_another_key_and_another_api_key_is_not(
    key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, here = key(), key(api_base="http://127.0.0.1:1/v1")
    assert here != own
    assert key(api_base="http://127.0.0.1:2/v1") != here
    assert key(api_key="sk-1") == key(api_key="sk-2") == own
    assert key(timeout=5) == own
    assert key(headers={"traceparent": "00-1-1-01"}) == own and key(extra_headers={"model": "b"}) != own
    monkeypatch.setenv("ACME_API_BASE", "http://127.0.0.1:3/v1")
    assert key() != own
    assert key(api_base="http://127.0.0.1:1/v1") == here  # what is given goes before


@pytest.mark.parametrize(
    "change", [{"model": "acme/small"}, {"temperature": 0.5}, {"max_tokens": 9}, {"rollout_id": 1}, {"seed": 3}]
)
def test_what_a_request_says_is_in_its_key(key: Callable[..., str], change: dict[str, Any]) -> None:
    assert key(**change) != key()


def test_a_server_is_known_without_its_password() -> None:
    assert server_of("acme/big", "http://me:one@host/v1/") == server_of("acme/big", "http://me:two@host/v1")
    assert "one" not in server_of("acme/big", "http://me:one@host/v1")


@pytest.mark.parametrize("package", ["litellm", "mlx", "mlx-lm", "llguidance"])
def test_a_package_counts_where_it_has_a_say(
    key: Callable[..., str], chain: Chains, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = {**REMOTE, "model": chain("hello").model}
    before = key(), key(local)
    versions = {**reply_cache.versions(), package: "99"}
    monkeypatch.setattr(reply_cache, "versions", lambda: versions)
    assert (key() != before[0]) is (package == "litellm")
    assert key(local) != before[1]


def test_bits_and_sources_of_the_engine_count(
    key: Callable[..., str], chain: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = chain("hello")
    local = {**REMOTE, "model": asked.model}
    remote, before = key(), key(local)
    asked.engine_settings = {"kv_bits": 4}
    assert key(local) != before
    asked.engine_settings = {}
    monkeypatch.setattr(reply_cache, "sources_sha256", lambda *given: "another")
    assert key(local) != before
    assert key() == remote  # another model's reply owes nothing to them


def test_files_that_do_not_count_are_there() -> None:
    assert all((LIBRARY / "lm" / name).exists() for name in BESIDE)


def test_one_server_is_not_answered_with_the_reply_of_another(elsewhere: Elsewhere, tmp_path: Path) -> None:
    use_cache(Settings(home=tmp_path))
    with registered("elsewhere", elsewhere.handler()):
        for server, calls in (("http://a", 1), ("http://b", 2), ("http://a", 2)):
            lm = dspy.LM("elsewhere/big", engine="litellm", num_retries=0, api_base=server, api_key=f"sk-{calls}")
            assert lm("hello") == ["from elsewhere"]
            assert len(elsewhere.calls) == calls


def ask(asked: Chain, home: Path) -> list[Any]:
    return connect(Settings(home=home, lm=LMSettings(model=asked.model))).lm("hello")


def test_a_reply_of_torch_is_not_taken_for_mlx(chain: Chains, tmp_path: Path) -> None:
    said = iter([EngineFailed("on fire"), "from mlx"])
    asked = chain(lambda request: next(said), "from torch")
    assert ask(asked, tmp_path) == ["from torch"]  # for this request alone
    assert ask(asked, tmp_path) == ["from mlx"]
    assert ask(asked, tmp_path) == ["from mlx"]  # from the cache: the engine has nothing left to say


def test_the_cache_of_another_home_is_another(chain: Chains, tmp_path: Path) -> None:
    said = iter(["one", "two"])
    asked = chain(lambda request: next(said))
    assert [ask(asked, tmp_path / name) for name in ("a", "b", "b", "a")] == [["one"], ["two"], ["two"], ["one"]]


def cut_short(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:5000])


def scribbled_over(database: Path) -> None:
    database.write_bytes(b"no database at all" * 500)


def holed(database: Path) -> None:
    """The head is whole, so that opening meets no damage."""
    data = database.read_bytes()
    database.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


@pytest.mark.parametrize("damage", [cut_short, scribbled_over, holed])
def test_a_damaged_shard_is_set_aside_with_one_warning_and_filled_again(
    chain: Chains, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    said = iter(["one", "two"])
    asked = chain(lambda request: next(said))
    assert ask(asked, tmp_path / "a") == ["one"]
    use_cache(Settings(home=tmp_path / "b"))  # closes the databases of the first
    shards = sorted((tmp_path / "a" / "cache").glob("*/cache.db"))
    for shard in shards:
        damage(shard)
    caplog.clear()
    assert ask(asked, tmp_path / "a") == ["two"]
    assert ask(asked, tmp_path / "a") == ["two"]  # kept again
    aside = list((tmp_path / "a" / "cache").glob("*.damaged-*"))
    assert (
        len(aside) == len(shards) == len([record for record in caplog.records if "is damaged" in record.getMessage()])
    )


def test_a_shard_that_is_damaged_while_it_is_in_use(tmp_path: Path) -> None:
    cache = ReplyCache(str(tmp_path / "cache"))
    cache.put(REMOTE, "a reply", IGNORED)
    cache.reset_memory_cache()
    assert cache.get(REMOTE, IGNORED) == "a reply"
    cache.reset_memory_cache()
    for shard in tmp_path.glob("cache/*/cache.db"):
        shard.with_name("cache.db-wal").unlink(missing_ok=True)
        with shard.open("r+b") as file:
            file.write(b"\xff" * 100_000)
    with ThreadPoolExecutor(4) as pool:  # each thread opens the databases for itself
        assert list(pool.map(lambda _: cache.get(REMOTE, IGNORED), range(8))) == [None] * 8
    assert len(list(tmp_path.glob("cache/*.damaged-*"))) == len(list(tmp_path.glob("cache/[0-9][0-9][0-9]")))
    cache.put(REMOTE, "another", IGNORED)
    cache.reset_memory_cache()
    assert cache.get(REMOTE, IGNORED) == "another"
    cache.disk_cache.close()
