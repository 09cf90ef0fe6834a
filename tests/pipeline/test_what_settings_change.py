"""What a change of each setting makes anew: each in turn, against what is said of it here. A new one fails until it has its line.

data      the rows are prepared again, and all that follows
program   the probe, the search and the comparison are made again
gate      the comparison is made again
choice    the optimizer is chosen anew (which is never cached)
reply     a model is asked again
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import pytest

from dspy_toolkit.lm.connection import _answer, connect
from dspy_toolkit.lm.litellm.fallback import Chain
from dspy_toolkit.lm.litellm.provider import EngineBackend
from dspy_toolkit.lm.reply_cache import engine_settings
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.pipeline.select import effective_options
from dspy_toolkit.run import Request
from dspy_toolkit.settings import Section, Settings, load_settings
from dspy_toolkit.testing import FakeEngine
from tests.engines import own_engines
from tests.optimizers.toys import records, write_project

LOCAL, REMOTE = "mlx/local@01234567", "openai/remote"


class Change(NamedTuple):
    """Another value of a setting, and what it makes anew; for nothing, the reason."""

    value: Any
    anew: str = ""
    because: str = ""
    beside: dict[str, Any] = {}
    """Other settings that it needs to have a meaning; the change is against these alone."""


ELSEWHERE = "http://127.0.0.1:9/v1"
KEY = "a key opens the same model"
WHEN = "it says when a reply comes, or that none does"
ROLES: dict[str, Change] = {
    f"{role}.{name}": change
    for role in ("reflection", "teacher", "judge")
    for name, change in {
        "model": Change(REMOTE, "program reply"),
        "api_base": Change(ELSEWHERE, "program reply", beside={f"{role}.model": REMOTE}),
        "api_key": Change("sk-1", because=KEY, beside={f"{role}.model": REMOTE}),
        "temperature": Change(0.5, "program reply"),
        "max_tokens": Change(99, "program reply"),
        "timeout": Change(5, because=WHEN),
    }.items()
}
CHANGES = ROLES | {
    "home": Change("another home", because="what is found there is named by its contents"),
    "store.address": Change("memory://elsewhere", because="what is found there is named by its contents"),
    "lm.model": Change(REMOTE, "program reply"),
    "lm.api_base": Change(ELSEWHERE, "program reply", beside={"lm.model": REMOTE}),
    "lm.api_key": Change("sk-1", because=KEY, beside={"lm.model": REMOTE}),
    "lm.temperature": Change(0.5, "program reply"),
    "lm.max_tokens": Change(99, "program reply"),
    "lm.timeout": Change(5, because=WHEN),
    "lm.backend": Change("torch", "program", "a reply is kept under the name of who gave it"),
    "lm.fallbacks": Change(["openai/other"], "program", "a reply is kept under the name of who gave it"),
    "lm.batch_size": Change(2, because="the engine's contract: the rest of a batch changes no reply"),
    "lm.queue_size": Change(2, because=WHEN),
    "lm.lease": Change("wait", because=WHEN),
    "lm.lease_seconds": Change(2, because=WHEN),
    "lm.memory_limit_gb": Change(1, because="it says whether a model is loaded, and how many rows beside each other"),
    "lm.kv_bits": Change(4, "program reply"),
    "data.near_duplicate": Change(0.9, "data"),
    "data.drop_bad_rows": Change(True, "data"),
    "optimize.optimizer": Change("gepa", "choice"),
    "optimize.budget": Change("heavy", "choice"),
    "optimize.threads": Change(3, because="rows are put together in their own order, whatever is finished first"),
    "optimize.repeats": Change(3, "program"),
    "optimize.seed": Change(1, "program reply"),
    "optimize.gepa.merge": Change(True, "program"),
    "optimize.gepa.component_selector": Change("all", "program"),
    "optimize.false_promotion_rate": Change(0.01, "gate"),
    "registry.tracking_uri": Change(
        "sqlite:///no/where.db", because="the champion and the runs found there are read anew"
    ),
    "registry.experiment": Change("other", because="the runs found there are read anew"),
    "monitor.false_alarm_rate": Change(0.05, because="it is about a version that is live already"),
    "monitor.fresh_rows": Change(20, because="it is about a version that is live already"),
    "monitor.sealed_rows": Change(2, because="it is about a version that is live already"),
    "monitor.disk_free_gb": Change(5, because="somebody is told sooner"),
    "alerts.targets": Change(["json://127.0.0.1:9"], because="others are told"),
    "alerts.fold_minutes": Change(5, because="somebody is told more often"),
    "observe.log_level": Change("DEBUG", because="a person sees more"),
    "observe.progress": Change(False, because="a person sees less"),
    "observe.trace": Change(True, because="it is what a person sees"),
    "observe.show_sealed_rows": Change(True, because="a person sees more of what was found"),
    **{
        f"serving.{name}": Change(value, because="it says who is answered, how, and how much of it; runs serve nobody")
        for name, value in {
            "host": "0.0.0.0",
            "port": 9000,
            "programs": ["router"],
            "deadline_seconds": 5,
            "poll_seconds": 5,
            "concurrency": 2,
            "queue_size": 2,
            "key_concurrency": 2,
            "rate_per_minute": 2,
            "max_body_bytes": 2048,
            "max_field_characters": 2,
            "max_batch": 2,
            "max_tokens": 2,
            "threads": 2,
            "fall_back_on": ["openai/other"],
            "fall_back_share": 0.5,
            "breaker_failures": 2,
            "breaker_seconds": 2,
            "remember_requests": 2,
            "trace_share": 0.5,
            "log_text": True,
            "ensembles": {"several": {"members": ["a", "b"]}},
            "challengers": {"router": {"version": 2}},
        }.items()
    },
    "projects": Change(
        {"other": {"lm": {"model": REMOTE}}}, because="another project's; this one's are laid over the above"
    ),
}
BEFORE: dict[str, dict[str, Any]] = {}
"""By what is set beside a change: it is the same for many of them."""


def settings_of(model: type[Any], before: str = "") -> Iterator[str]:
    """Every setting by its dotted name."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings_of(field.annotation, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def made(home: Path, changes: dict[str, Any]) -> Settings:
    tables: dict[str, Any] = {"home": home, "lm": {"model": LOCAL}}
    for name, value in changes.items():
        *section, last = name.split(".")
        table = tables
        for part in section:
            table = table.setdefault(part, {})
        table[last] = value
    return load_settings(**tables)


def keys(settings: Settings) -> list[str]:
    """The keys of one request to the model of each role."""
    engine = FakeEngine(lambda request: "", model=LOCAL)
    _answer(Chain(LOCAL, [EngineBackend(LOCAL, lambda: engine)], engine_settings(settings.lm)))
    connection = connect(settings)
    lms = connection.lm, connection.reflection, connection.teacher, connection.judge
    asked = [{"role": "user", "content": "hello"}]
    return [dspy.cache.cache_key({"model": lm.model, "messages": asked, **lm.kwargs}, ["api_base"]) for lm in lms]


def depends(location: str, settings: Settings) -> dict[str, Any]:
    """What each kind of result depends on."""
    reply = keys(settings)  # and from here on an engine answers for LOCAL
    context = Context.open(location, settings)
    ref = resolve(context, Request(location=location))
    return {
        "data": ref.data,
        "program": ref.program,
        "gate": ref.false_promotion_rate,
        "choice": effective_options(context, None, None),
        "reply": reply,
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_engines():
        yield str(write_project(tmp_path_factory.mktemp("project"), records(9)))


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_every_setting_has_its_line() -> None:
    assert set(settings_of(Settings)) == set(CHANGES)
    assert all(change.anew or change.because for change in CHANGES.values())


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_setting_makes_anew(name: str, project: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    change, home = CHANGES[name], tmp_path_factory.getbasetemp() / "a home"
    if (beside := str(change.beside)) not in BEFORE:
        BEFORE[beside] = depends(project, made(home, change.beside))
    before, after = BEFORE[beside], depends(project, made(home, {**change.beside, name: change.value}))
    assert {kind for kind in before if before[kind] != after[kind]} == set(change.anew.split()), change.because
