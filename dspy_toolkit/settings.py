"""The one configuration.

Read from, weakest first: the defaults below, `dspy-toolkit.toml` in the working folder, environment variables
(`DSPY_TOOLKIT_HOME`, `DSPY_TOOLKIT_LM__MODEL`, …; two underscores step into a section), arguments. `[projects.NAME]`
tables override the rest for one project. An unknown key is refused with the nearest known name. Secrets are `SecretStr`:
they never reach a log, an artifact or a repr.

Reading makes nothing: no folder appears until something is written into it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dspy_toolkit.errors import SettingsError, nearest

FILE_NAME = "dspy-toolkit.toml"
PREFIX = "DSPY_TOOLKIT_"

OptimizerName = Literal["auto", "race", "labelled", "bootstrap", "random", "mipro", "gepa"]
BUDGET_NAMES = {"light": 300, "medium": 1_200, "heavy": 5_000}
"""Logical LM calls of each."""


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """(LM calls, seconds) that a budget is stated in; the other is None.

    Raises:
        ValueError: it is none.
    """
    if text in BUDGET_NAMES:
        return BUDGET_NAMES[text], None
    found = re.fullmatch(r"([1-9][0-9]{0,6})([mh]?)", text)
    if found is None:
        raise ValueError(
            f"There is no budget {text!r}.{nearest(text, BUDGET_NAMES)} LM calls (800) and a time (15m, 2h) are budgets too"
        )
    number, unit = int(found[1]), found[2]
    return (None, number * {"m": 60.0, "h": 3600.0}[unit]) if unit else (number, None)


def _check_budget(text: str) -> str:
    parse_budget(text)
    return text


BudgetName = Annotated[str, AfterValidator(_check_budget)]
"""`light`, `medium`, `heavy`, LM calls (`800`) or a time (`15m`, `2h`)."""


class Section(BaseModel):
    """A table of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LMSettings(Section):
    """The language model that runs the programs."""

    model: str = "mlx/smollm2-135m"
    """`mlx/smollm2-135m` (embedded), `mlx/HUB-ID`, `mlx/FOLDER` (each also `+ADAPTER`), or any LiteLLM model name."""
    reflection_model: str | None = None
    """The model that writes instructions (MIPROv2's proposer, GEPA's reflector); `model` when not given."""
    api_key: SecretStr | None = None
    """For a LiteLLM model; the provider's own environment variable works too."""
    api_base: str | None = None
    """For a LiteLLM model: the address of its server."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """What runs an `mlx/` model: `auto` is MLX, then torch where it is installed, then `fallbacks`; `torch` begins with
    torch; `mlx` is MLX alone.
    """
    fallbacks: tuple[str, ...] = ()
    """LiteLLM models to ask, in this order, when no backend on this machine can run an `mlx/` model. Prompts leave the
    machine for those listed here, and for no others.
    """
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the task model; 0 is greedy."""
    max_tokens: int = Field(default=256, ge=1)
    """The longest reply, in tokens."""
    batch_size: int = Field(default=16, ge=1, le=256)
    """Rows that the engine decodes together."""
    queue_size: int = Field(default=1024, ge=1)
    """Waiting requests; one more is refused with EngineBusy."""
    deadline_seconds: float = Field(default=600, gt=0)
    """From submission to the last token of one request."""
    lease: Literal["wait", "share"] = "wait"
    """What to do while another process uses the accelerator: wait for it, or run beside it."""
    lease_seconds: float = Field(default=600, ge=0)
    """How long to wait for it."""
    memory_limit_gb: float | None = Field(default=None, gt=0)
    """Refuse a model that needs more; by default what the machine has to spare."""
    kv_bits: Literal[4, 8] | None = None
    """Keep shared prefixes in this many bits a number: more of them fit, and replies may differ a little."""

    @field_validator("kv_bits", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # The environment has only text, and a choice of numbers does not convert it.
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @field_validator("fallbacks")
    @classmethod
    def _check_fallbacks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if "/" not in name or name.startswith(("mlx/", "torch/")):
                raise ValueError(f"{name!r} is not a LiteLLM model, such as openai/gpt-4o")
        return names


class DataSettings(Section):
    """Reading and checking rows."""

    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of character 5-grams from which two rows count as one group."""
    drop_bad_rows: bool = False
    """Leave out rows that do not fit the signature, instead of refusing the dataset."""


class OptimizeSettings(Section):
    """What an optimization may spend and risk."""

    optimizer: OptimizerName = "auto"
    """Where neither the command nor the project names one."""
    budget: BudgetName = "light"
    """Logical LM calls of one compilation: light 300, medium 1,200, heavy 5,000, or a number (`800`); or a time (`15m`, `2h`).
    The sealed test is apart.
    """
    threads: int = Field(default=16, ge=1, le=256)
    """Program runs at once."""
    seed: int = 0
    """Of everything that is drawn: samples, slices, the optimizers' own draws."""
    false_promotion_rate: float = Field(default=0.05, gt=0, lt=0.5)
    """The chance, over one test set's life, of promoting a program that is not better."""


class RegistrySettings(Section):
    """Where versions and runs are kept."""

    tracking_uri: str | None = None
    """An MLflow tracking address; `sqlite:///HOME/mlflow.db` when not given."""
    experiment: str = "dspy-toolkit"
    """The MLflow experiment that runs are recorded in."""


class ServeSettings(Section):
    """Where programs are served; nothing reads it before serving exists."""

    host: str = "127.0.0.1"
    """Loopback, so that nothing outside this machine reaches it."""
    port: int = Field(default=8600, ge=1, le=65535)
    """The TCP port."""


class ObserveSettings(Section):
    """What a person sees."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """From which level up the toolkit's own log is shown on the terminal."""
    progress: bool = True
    """Progress bars on a terminal."""


class Settings(BaseSettings):
    """Everything that can be configured. Make one with `load_settings`, which gives the better errors."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        toml_file=FILE_NAME,
    )

    home: Path = Path(".dspy-toolkit")
    """Everything the toolkit keeps: objects, MLflow database, caches, converted models, checkpoints."""
    lm: LMSettings = LMSettings()
    data: DataSettings = DataSettings()
    optimize: OptimizeSettings = OptimizeSettings()
    registry: RegistrySettings = RegistrySettings()
    serve: ServeSettings = ServeSettings()
    observe: ObserveSettings = ObserveSettings()
    projects: dict[str, dict[str, Any]] = {}
    """Overrides of one project: `[projects.router.lm] model = "…"`. `[projects.NAME] location = "path/to/file.toml"` lets the
    name stand for that project, in deployments too.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def path(self, *parts: str) -> Path:
        """An absolute path under `home`."""
        return self.home.expanduser().resolve().joinpath(*parts)

    @property
    def objects(self) -> str:
        """The root of the object store."""
        return str(self.path("objects"))

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking address in force."""
        return self.registry.tracking_uri or f"sqlite:///{self.path('mlflow.db')}"

    def location_of(self, name: str) -> str:
        """Where the `[projects.NAME]` table says that the project is; empty when it does not."""
        return self.projects.get(name, {}).get("location", "")

    def for_project(self, name: str) -> Settings:
        """These settings with the `[projects.NAME]` table laid over them."""
        if not (table := self.projects.get(name)):
            return self
        changes: dict[str, Any] = {}
        for key, value in table.items():
            if key == "location":
                if not isinstance(value, str) or not value:
                    raise SettingsError(
                        f"[projects.{name}] location is {value!r}. Write a path, or package.module:attr."
                    )
                continue
            section = getattr(self, key, None) if key in OVERRIDABLE else None
            if not isinstance(section, Section) or not isinstance(value, dict):
                raise SettingsError(
                    f"[projects.{name}] cannot hold {key!r}.{nearest(key, OVERRIDABLE)} "
                    f"Write a table, such as [projects.{name}.lm]."
                )
            try:
                # Laid over as given, not over a dump: a dump would turn a secret into its mask.
                given = {field: getattr(section, field) for field in section.model_fields_set}
                changes[key] = type(section).model_validate({**given, **value})
            except ValidationError as error:
                raise SettingsError(explain(error, f"[projects.{name}.{key}] ", type(section))) from None
        return self.model_copy(update=changes)


OVERRIDABLE = ("lm", "data", "optimize", "registry", "serve", "observe")


def load_settings(**arguments: Any) -> Settings:
    """Read the settings; `arguments` (sections as dictionaries) win over every other source.

    Raises:
        SettingsError: a key is unknown (the nearest known one is named), or a value does not fit.
    """
    _check_environment()
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        raise SettingsError(explain(error, "", Settings)) from None
    except ValueError as error:  # tomllib's and pydantic-settings' own: a file or variable that cannot be parsed
        raise SettingsError(f"The settings cannot be read: {error}. Correct {FILE_NAME} or the environment.") from None
    for name in settings.projects:
        settings.for_project(name)
    return settings


def _check_environment() -> None:
    """Refuse `DSPY_TOOLKIT_HOEM`: pydantic-settings itself only looks for the names that it knows."""
    for variable in os.environ:
        if not variable.startswith(PREFIX):
            continue
        head = variable.removeprefix(PREFIX).split("__", 1)[0].lower()
        if head not in Settings.model_fields:
            hint = nearest(head, Settings.model_fields).replace(head, head)
            raise SettingsError(f"Environment variable {variable} is not a setting.{hint} Unset or rename it.")


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """A pydantic error as one line a setting, with the nearest known name for an unknown one."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=True):
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            owner = _owner(model, path[:-1])
            lines.append(f"{where}{name} is not a setting.{nearest(path[-1], owner.model_fields)}")
        else:
            secret = "key" in path[-1] or "secret" in path[-1] or ("token" in path[-1] and path[-1] != "max_tokens")
            seen = "" if secret else f" (it is {problem['input']!r})"
            lines.append(f"{where}{name}: {problem['msg']}{seen}.")
    return "\n".join(lines) + f"\nCorrect {FILE_NAME} or the environment; `dspy-toolkit doctor` shows what is in force."


def _owner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return model
        model = cast("type[BaseModel]", field.annotation)
    return model
