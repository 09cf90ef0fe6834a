"""Shared by all tests: a home of their own, and one real model for the whole session."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from dspy_toolkit.lm.models.blas import preload
from dspy_toolkit.settings import Settings

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection
    from dspy_toolkit.lm.engine.engine import Engine
    from dspy_toolkit.lm.litellm.fallback import Chain
    from dspy_toolkit.registry.programs import LoadedProgram

# A busy machine is no fault of an example: a test's own limit is pytest's. `--hypothesis-profile thorough` draws more.
hypothesis.settings.register_profile("ordinary", deadline=None, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile("ordinary")

QUESTIONS = """
name = "questions"
summary = "Classify a question"
signature = 'text: str -> label: Literal["number", "person"]'
instructions = "Classify the question."
[dataset]
source = "questions.csv"
inputs = ["text"]
outputs = ["label"]
"""

TYPED = """
name = "typed"
signature = 'user_name: str, age: int, tags: list[str] -> fit: bool, notes: list[str]'
metric = "exact_match"
[dataset]
source = "typed.csv"
inputs = ["user_name", "age", "tags"]
outputs = ["fit"]
"""


def pytest_configure(config: pytest.Config) -> None:
    """Before the first import of DSPy, which makes its cache's folder then: nothing outside this folder is touched.

    And before the first of MLX, which would keep its reference BLAS: test modules import it as they are collected.
    """
    if os.path.exists("prefect.toml"):
        raise pytest.UsageError(
            "prefect.toml would lead the tests' runs to the server that is up. Run `make down` first."
        )
    folder = tempfile.mkdtemp(prefix="dspy-toolkit-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.update(
        DSPY_TOOLKIT_HOME=os.path.join(folder, "home"),
        DSPY_TOOLKIT_LM__LEASE="share",
        DSPY_CACHEDIR=os.path.join(folder, "dspy"),
        HF_HUB_OFFLINE="1",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )
    preload()


@pytest.fixture(scope="session", autouse=True)
def few_databases() -> Iterator[None]:
    """DSPy's cache of replies is 16 databases, opened anew for each home and by each thread. Two do the same sooner."""
    import diskcache

    class Few(diskcache.FanoutCache):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"shards": 2})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diskcache, "FanoutCache", Few)
        yield


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sends the log to stderr: the next test finds it as it was."""
    logger = logging.getLogger("dspy_toolkit")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    factory = logging.getLogRecordFactory()
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.fixture(scope="session")
def model_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds the converted embedded model."""
    from dspy_toolkit.lm.models.weights import find_weights

    folder = tmp_path_factory.mktemp("model home")
    find_weights("mlx/smollm2-135m", folder)
    return folder


@pytest.fixture(scope="session")
def connection(model_home: Path) -> Iterator[Connection]:
    """The real embedded model, loaded once, with greedy decoding."""
    from dspy_toolkit.lm import close_engines, connect
    from dspy_toolkit.lm.litellm.provider import find_chain
    from dspy_toolkit.settings import load_settings

    found = connect(load_settings(home=model_home))
    _shared.append(find_chain(found.model))
    yield found
    close_engines()


_shared: list[Chain] = []
"""Who answers for the session's model, once a test has asked for it."""


@pytest.fixture(autouse=True)
def shared_engine_stays() -> Iterator[None]:
    """What closes the session's engine is named, and not the later tests that it fails."""
    yield
    for chain in _shared:
        assert not chain.closed, "This test closed the engine that all share."
        assert chain.current is chain.backends[0] and not chain.current.closed, "This test made the shared engine fail."


@pytest.fixture(scope="session")
def engine(connection: Connection) -> Engine:
    """The engine behind `connection`."""
    from dspy_toolkit.lm.engine.engine import Engine
    from dspy_toolkit.lm.litellm.provider import find_engine

    engine = find_engine(connection.model)
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying one does not."""
    from dspy_toolkit.tracking.mlflow_client import connect

    home = Settings(home=tmp_path_factory.mktemp("mlflow") / "home")
    connect(home)
    return home.path("mlflow.db")


@pytest.fixture
def home(tmp_path: Path, empty_mlflow: Path) -> Settings:
    """Settings of a fresh home, with a space in its name, whose MLflow database is made."""
    settings = Settings(home=tmp_path / "a home")
    settings.path().mkdir()
    shutil.copy(empty_mlflow, settings.path("mlflow.db"))
    return settings


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A project's TOML file, with no rows."""
    path = tmp_path / "questions.toml"
    path.write_text(QUESTIONS)
    return path


@pytest.fixture
def typed(tmp_path: Path, home: Settings) -> LoadedProgram:
    """The program of a project whose inputs are of several types."""
    from dspy_toolkit.registry.programs import load_program

    path = tmp_path / "typed.toml"
    path.write_text(TYPED)
    return load_program(home, str(path))


@pytest.fixture
def save_questions(home: Settings, questions: Path) -> Callable[..., int]:
    """Save a version of the `questions` project that has the given instructions and one demo."""

    from dspy_toolkit.project import load_project
    from dspy_toolkit.project.signatures import fields_of, signature_hash
    from dspy_toolkit.registry import Manifest, save_version
    from dspy_toolkit.registry.references import lasting_location
    from dspy_toolkit.tracking import runs as tracking

    def save(instructions: str = "Say what the answer is.", **fields: Any) -> int:
        demo = {"augmented": True, "text": "Who wrote Emma?", "label": "person"}
        program = load_project(str(questions)).build()
        state = program.dump_state()
        state["demos"], state["signature"]["instructions"] = [demo], instructions
        manifest = Manifest(
            **{
                "project": "questions",
                "location": lasting_location(str(questions)),
                "signature_fields": {name: str(kind) for name, kind in fields_of(program).items()},
                "signature_sha256": signature_hash(program),
                "optimizer": "bootstrap",
                "optimizer_settings": {"max_bootstrapped_demos": 1},
                "model": "mlx/tiny@01234567",
                "metric": "exact_match",
                "trained_rows": ("a", "b"),
                "reports": {
                    "sealed": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 40},
                    "comparison": {"delta": 0.125, "low": 0.01, "high": 0.24},
                },
            }
            | fields
        )
        run_id = tracking.open_run(home, "questions", "optimize questions")
        return save_version(home, "questions", state, manifest, run_id)

    return save
