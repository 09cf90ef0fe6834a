"""A store in a bucket: two homes, which share nothing else, hand a search's work to each other.

The bucket is moto's, an S3-compatible server in this process, reached over HTTP by s3fs. Left out where these are missing;
`make test-system` gets them (`tests/system/test_optional_packages.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dspy_toolkit.errors import ObjectMissing, StoreError
from dspy_toolkit.optimizers.pool.scoring import Scored, ScoreJob
from dspy_toolkit.pipeline.compile import compile as search
from dspy_toolkit.pipeline.compile import score_candidate
from dspy_toolkit.run import CompileInput, ScoreInput
from dspy_toolkit.settings import Settings, StoreSettings
from dspy_toolkit.store import Ref, Store
from tests.optimizers.benches import Bench

pytestmark = pytest.mark.timeout(600)
INSTALL = "pip install s3fs 'moto[server]'"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store in an empty bucket."""
    pytest.importorskip("s3fs", reason=INSTALL)
    server = pytest.importorskip("moto.server", reason=INSTALL)
    import boto3
    import s3fs

    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a key",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="shared")
    yield "s3://shared/objects"
    running.stop()


def test_two_homes_share_a_search(bucket: str, home: Settings, tmp_path: Path) -> None:
    shared = StoreSettings(address=bucket)
    benches = [
        Bench(home.model_copy(update={"home": place, "store": shared}), tmp_path / "project")
        for place in (home.path(), tmp_path / "another home")
    ]
    first, second = benches
    _, _, found = first.begin()
    profile = first.probe(found)
    given = CompileInput(**dict(found), choice=first.select(found, profile, "race", "300"), profile=profile)
    shares: list[int] = []

    def on_both(jobs: Sequence[ScoreJob]) -> list[Scored]:
        shares.append(len(jobs))
        scored = []
        for number, job in enumerate(jobs):
            asked = {name: getattr(given, name) for name in ("program", "train", "val", "start", "night")}
            scored.append(score_candidate(benches[number % 2].context(), ScoreInput(**asked, job=job)))
        return scored

    together = search(first.context(), given, None, on_both)
    assert max(shares) > 1
    assert not [path for bench in benches for path in bench.toy.settings.path("objects").rglob("*")]
    assert Store(second.toy.settings.objects).read_json(together.program) == first.toy.store.read_json(together.program)

    alone = Bench(home.model_copy(update={"home": tmp_path / "alone"}), tmp_path / "project")
    _, _, same = alone.begin()
    assert (same.program, same.train, same.val) == (found.program, found.train, found.val)
    assert search(alone.context(), given, None, None).program == together.program


def test_what_fails_at_the_bucket_is_one_clear_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(bucket)
    ref = store.save(b"{}", "json")
    assert Store(bucket).read(ref) == b"{}"
    store.delete(ref)
    with pytest.raises(ObjectMissing, match="has no object"):
        store.read(ref)
    with pytest.raises(StoreError, match="Cannot write"):
        Store("s3://nobodys/objects").save(b"{}", "json")
    assert not Store("s3://nobodys/objects").exists(Ref(sha256="0" * 64, kind="json"))
