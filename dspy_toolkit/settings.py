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
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dspy_toolkit.errors import SettingsError, nearest
from dspy_toolkit.sections import Section, ServingSettings

FILE_NAME = "dspy-toolkit.toml"
PREFIX = "DSPY_TOOLKIT_"

OptimizerName = Literal[
    "auto",
    "race",
    "formats",
    "labels",
    "labelled",
    "knn",
    "bootstrap",
    "random",
    "mipro",
    "gepa",
    "simba",
    "finetune",
    "together",
]
BUDGET_NAMES = {"light": 300, "medium": 1_200, "heavy": 5_000}
"""Logical LM calls of each."""


class BudgetParts(NamedTuple):
    """What a budget is stated in; the others are None."""

    calls: int | None = None
    seconds: float | None = None
    usd: float | None = None


def parse_budget(text: str) -> BudgetParts:
    """The parts of a budget.

    Raises:
        ValueError: it is none.
    """
    if text in BUDGET_NAMES:
        return BudgetParts(calls=BUDGET_NAMES[text])
    found = re.fullmatch(r"[$]([0-9]+(?:[.][0-9]+)?)|([0-9]+(?:[.][0-9]+)?)usd", text)
    if found is not None and (usd := float(found[1] or found[2])) > 0:
        return BudgetParts(usd=usd)
    found = re.fullmatch(r"([1-9][0-9]{0,6})([mh]?)", text)
    if found is None:
        raise ValueError(
            f"There is no budget {text!r}.{nearest(text, BUDGET_NAMES)} LM calls (800), a time (15m, 2h) and dollars (2.50usd) "
            "are budgets too"
        )
    number, unit = int(found[1]), found[2]
    return BudgetParts(seconds=number * {"m": 60.0, "h": 3600.0}[unit]) if unit else BudgetParts(calls=number)


def _check_budget(text: str) -> str:
    parse_budget(text)
    return text


BudgetName = Annotated[str, AfterValidator(_check_budget)]
"""`light`, `medium`, `heavy`, LM calls (`800`), a time (`15m`, `2h`) or dollars (`2.50usd`)."""


class ModelSettings(Section):
    """A model: where it is, and how it is asked. A key goes to this section's model at its address, and nowhere else."""

    model: str = ""
    """`mlx/…` or any LiteLLM model; empty: the task's model, at the task's address."""
    api_base: str | None = None
    """For a LiteLLM model: the address of its server, if it is not the provider's own."""
    api_key: SecretStr | None = None
    """For a LiteLLM model. Without an `api_base` its provider's own environment variable works too."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 is greedy."""
    max_tokens: int = Field(default=256, ge=1)
    """The longest reply, in tokens; a default that is more than the model allows is lowered to that."""
    timeout: float = Field(default=600, gt=0)
    """Seconds from a call to its last token, waiting included. A role that sets none has `lm.timeout`, which for `mlx/`
    models is the longest.
    """

    @field_validator("api_base")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is not None and (not address.startswith(("http://", "https://")) or "@" in address):
            raise ValueError("give an address such as http://127.0.0.1:8080/v1; a key goes into api_key")
        return address


class LMSettings(ModelSettings):
    """The language model that runs the programs (the task), and the engines of this process."""

    model: str = "mlx/smollm2-135m"
    """`mlx/smollm2-135m` (embedded), `mlx/HUB-ID`, `mlx/FOLDER` (each also `+ADAPTER`), or any LiteLLM model name."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """What runs an `mlx/` model: `auto` is MLX, then torch where it is installed, then `fallbacks`; `torch` begins with
    torch; `mlx` is MLX alone.
    """
    fallbacks: tuple[str, ...] = ()
    """LiteLLM models to ask, in this order, when no backend on this machine can run an `mlx/` model. Prompts leave the
    machine for those listed here, and for no others; their keys come from their providers' environment variables.
    """
    batch_size: int = Field(default=16, ge=1, le=256)
    """Rows that the engine decodes together."""
    queue_size: int = Field(default=1024, ge=1)
    """Waiting requests; one more is refused with EngineBusy."""
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


class ReflectionSettings(ModelSettings):
    """The model that writes instructions: MIPROv2's proposer, GEPA's reflector."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy; new instructions need some variety."""
    max_tokens: int = Field(default=16_000, ge=1)
    """The longest reply, in tokens; an `mlx/` model gives a quarter of its context at most."""


class TeacherSettings(ModelSettings):
    """The model that answers training rows, whose right answers become demonstrations."""

    max_tokens: int = Field(default=1_000, ge=1)
    """The longest reply, in tokens; with the task's own model, the task's limit unless this is set."""


class JudgeSettings(ModelSettings):
    """The model that grades answers, for a metric `judge` that names none."""

    max_tokens: int = Field(default=1_000, ge=1)
    """The longest judgement, in tokens."""


class DataSettings(Section):
    """Reading and checking rows."""

    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of character 5-grams from which two rows count as one group."""
    drop_bad_rows: bool = False
    """Leave out rows that do not fit the signature, instead of refusing the dataset."""


class GepaSettings(Section):
    """How GEPA searches."""

    merge: bool = False
    """Whether it merges two good candidates: it makes small models worse (IFBench 38.6 → 28.2 on Qwen3-8B), and helped
    GPT-4.1-mini."""
    component_selector: Literal["round_robin", "all"] = "round_robin"
    """Which predictors an iteration rewrites: one after the other, or all at once."""


class OptimizeSettings(Section):
    """What an optimization may spend and risk."""

    optimizer: OptimizerName = "auto"
    """Where neither the command nor the project names one."""
    budget: BudgetName = "light"
    """Logical LM calls of one compilation: light 300, medium 1,200, heavy 5,000, or a number (`800`); a time (`15m`, `2h`); or
    dollars (`2.50usd`), which for models with a price are never exceeded. The sealed test is apart.
    """
    threads: int = Field(default=16, ge=1, le=256)
    """Program runs at once."""
    repeats: int = Field(default=1, ge=1, le=100)
    """Runs of each row when two programs are compared; above 1, `lm.temperature` must be above 0."""
    seed: int = 0
    """Of everything that is drawn, together with the number of the night: a project's every recorded run draws anew."""
    gepa: GepaSettings = GepaSettings()
    false_promotion_rate: float = Field(default=0.05, gt=0, lt=0.5)
    """The chance, over one test set's life, of promoting a program that is not better."""


class RegistrySettings(Section):
    """Where versions and runs are kept."""

    tracking_uri: SecretStr | None = None
    """A secret, since a password may be in it. An MLflow tracking address; `sqlite:///HOME/mlflow.db` when not given."""
    experiment: str = "dspy-toolkit"
    """The MLflow experiment that runs are recorded in."""


class StoreSettings(Section):
    """Where one step's results wait for the next."""

    address: str | None = None
    """A folder, or an fsspec address that several machines reach, such as `s3://bucket/objects` (which needs the package s3fs);
    `HOME/objects` when not given.
    """


class ObserveSettings(Section):
    """What a person sees."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """From which level up the toolkit's own log is shown on the terminal."""
    progress: bool = True
    """Progress bars on a terminal."""
    trace: bool = False
    """Whether a run becomes one MLflow trace: its steps, the first programs of each, calls of models and the engine's part in
    them; sent to `OTEL_EXPORTER_OTLP_ENDPOINT` too, where that is set.
    """
    show_sealed_rows: bool = False
    """Show inputs and answers of sealed rows on the pages of runs and in MLflow. What is changed after reading them has been
    tuned on them.
    """


class MonitorSettings(Section):
    """Watching a live program."""

    false_alarm_rate: float = Field(default=0.02, gt=0, lt=0.5)
    """The chance of falsely confirming a fall over the whole life of a version, however often it is looked at; half of it for
    served replies, half for new labelled rows. A suspicion is bounded by 2.6 times it.
    """
    fresh_rows: int = Field(default=200, ge=1)
    """New labelled rows that the champion is run on, at most, in one look."""
    sealed_rows: int = Field(default=8, ge=0)
    """Sealed rows that it has answered before and is asked again, to see that it answers them as it did."""
    disk_free_gb: float = Field(default=2.0, ge=0)
    """Less than this free on the home's disk is told."""


class AlertSettings(Section):
    """Who is told what happens."""

    targets: tuple[SecretStr, ...] = ()
    """Addresses of Apprise, such as slack://…, mailto://user@host, json://host/path. Secrets, since passwords are in them."""
    fold_minutes: float = Field(default=60, ge=0)
    """Alerts of one subject within so many minutes are sent as one."""


class Environment(EnvSettingsSource):
    """The environment variables; see `_keep_keys`."""

    def __call__(self) -> dict[str, Any]:
        return _keep_keys(super().__call__(), self.current_state)


class TomlFile(TomlConfigSettingsSource):
    """`dspy-toolkit.toml`; see `_keep_keys`."""

    def __call__(self) -> dict[str, Any]:
        return _keep_keys(super().__call__(), self.current_state)


def _keep_keys(tables: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`tables` without the keys and addresses that were written beside a model which a stronger source replaces."""
    return {
        name: _under(table, above[name]) if isinstance(table, dict) and isinstance(above.get(name), dict) else table
        for name, table in tables.items()
    }


def _under(given: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """What of a section holds when `over` is laid over it: a key stays with its model's provider and its address."""
    models = [str(table["model"]).partition("/")[0] for table in (given, over) if table.get("model")]
    gone: tuple[str, ...] = ()
    if len(set(models)) > 1:
        gone = ("api_key", "api_base")
    elif over.get("api_base", given.get("api_base")) != given.get("api_base"):
        gone = ("api_key",)
    return {key: value for key, value in given.items() if key not in gone}


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
    """Everything the toolkit keeps: objects, MLflow's database and files, caches, converted models, reports."""
    lm: LMSettings = LMSettings()
    reflection: ReflectionSettings = ReflectionSettings()
    teacher: TeacherSettings = TeacherSettings()
    judge: JudgeSettings = JudgeSettings()
    data: DataSettings = DataSettings()
    optimize: OptimizeSettings = OptimizeSettings()
    registry: RegistrySettings = RegistrySettings()
    store: StoreSettings = StoreSettings()
    observe: ObserveSettings = ObserveSettings()
    serving: ServingSettings = ServingSettings()
    monitor: MonitorSettings = MonitorSettings()
    alerts: AlertSettings = AlertSettings()
    projects: dict[str, dict[str, Any]] = {}
    """Overrides of one project: `[projects.router.lm] model = "…"`. `[projects.NAME] location = "path/to/file.toml"` lets the
    name stand for that project, in deployments too.
    """

    @field_validator("projects")
    @classmethod
    def _hide_secrets(cls, tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        # Before anything is laid over it: until then a table is not a section, and its key a plain text.
        return _hidden(tables)

    @field_validator("home")
    @classmethod
    def _check_home(cls, home: Path) -> Path:
        if strange := set("?%$") & set(str(home.expanduser().resolve())):
            raise ValueError(
                f"a folder with {' and '.join(sorted(strange))} in its name is another one to the databases that lie in it; "
                "choose another name"
            )
        return home

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, Environment(settings_cls), TomlFile(settings_cls)

    def path(self, *parts: str) -> Path:
        """An absolute path under `home`."""
        return self.home.expanduser().resolve().joinpath(*parts)

    @property
    def objects(self) -> str:
        """The root of the object store."""
        given = self.store.address
        if given is None:
            return str(self.path("objects"))
        return given if "://" in given else str(Path(given).expanduser().resolve())

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking address in force."""
        given = self.registry.tracking_uri
        return given.get_secret_value() if given is not None else f"sqlite:///{self.path('mlflow.db')}"

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
            if key not in OVERRIDABLE or not isinstance(value, dict):
                hint = " It is not a table." if key in OVERRIDABLE else nearest(key, OVERRIDABLE)
                raise SettingsError(
                    f"[projects.{name}] cannot hold {key!r}.{hint} Write a table, such as [projects.{name}.lm]."
                )
            section = getattr(self, key)
            try:
                # Laid over as given, not over a dump: a dump would turn a secret into its mask.
                given = {field: getattr(section, field) for field in section.model_fields_set}
                changes[key] = type(section).model_validate({**_under(given, value), **value})
            except ValidationError as error:
                raise SettingsError(_in_words(error, f"[projects.{name}.{key}] ", type(section))) from None
        return self.model_copy(update=changes)


OVERRIDABLE = ("lm", "reflection", "teacher", "judge", "data", "optimize", "registry", "observe", "monitor")
RENAMED = {
    ("lm", "reflection_model"): '[reflection] model = "…", with its own api_key and api_base',
    ("lm", "deadline_seconds"): "[lm] timeout",
}
"""Settings of earlier versions, and what to write today."""
SECRET = re.compile(r"key|secret|password|credential|(?<!max_)token", re.IGNORECASE)
"""Names whose values are never shown."""


def _hidden(table: dict[str, Any]) -> dict[str, Any]:
    """`table` with every text under a secret's name as a SecretStr."""
    hidden: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            hidden[name] = _hidden(value)
        else:
            secret = isinstance(value, str) and (SECRET.search(name) or name == "tracking_uri")
            hidden[name] = SecretStr(value) if secret else value
    return hidden


def load_settings(**arguments: Any) -> Settings:
    """Read the settings; `arguments` (sections as dictionaries) win over every other source.

    Raises:
        SettingsError: a key is unknown (the nearest known one is named), or a value does not fit.
    """
    _check_environment()
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        raise SettingsError(_in_words(error, "", Settings)) from None
    except ValueError as error:  # tomllib's and pydantic-settings' own: a file or variable that cannot be parsed
        raise SettingsError(f"The settings cannot be read: {error}. Correct {FILE_NAME} or the environment.") from None
    for name in settings.projects:
        settings.for_project(name)
    return settings


def check_table(table: dict[str, Any], where: str) -> Settings:
    """The settings that the contents of a file give, by themselves: neither the environment nor the working folder's file counts.

    Args:
        where: what the file is called, for an error.

    Raises:
        SettingsError: as `load_settings`.
    """
    try:
        settings = _Alone(**table)
    except ValidationError as error:
        raise SettingsError(_in_words(error, f"{where}: ", Settings)) from None
    for name in settings.projects:
        settings.for_project(name)
    return settings


class _Alone(Settings):
    """Settings from what they are given alone."""

    model_config = SettingsConfigDict(toml_file=None)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *others: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _check_environment() -> None:
    """Refuse `DSPY_TOOLKIT_HOEM`: pydantic-settings itself only looks for the names that it knows."""
    for variable in os.environ:
        if not variable.startswith(PREFIX):
            continue
        head = variable.removeprefix(PREFIX).split("__", 1)[0].lower()
        if head not in Settings.model_fields:
            hint = nearest(head, Settings.model_fields)
            raise SettingsError(f"Environment variable {variable} is not a setting.{hint} Unset or rename it.")


def _in_words(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """A pydantic error as one line a setting, with the nearest known name for an unknown one."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=True):
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            section = path[-2] if len(path) > 1 else where.strip("[] ").rpartition(".")[2]
            if (now := RENAMED.get((section, path[-1]))) is not None:
                lines.append(f"{where}{name} is no longer a setting: write {now}.")
                continue
            owner = _owner(model, path[:-1])
            lines.append(f"{where}{name} is not a setting.{nearest(path[-1], owner.model_fields)}")
        else:
            lines.append(f"{where}{name}: {problem['msg']}{_seen(path[-1], problem)}.")
    return "\n".join(lines) + f"\nCorrect {FILE_NAME} or the environment; `dspy-toolkit doctor` shows what is in force."


def _seen(name: str, problem: Any) -> str:
    """The value, unless it may be a secret: an address may hold a password, and what should be a table anything."""
    value = problem["input"]
    if SECRET.search(name) or name == "api_base" or problem["type"] in ("model_type", "dict_type"):
        return ""
    return f" (it is {value!r})" if isinstance(value, str | int | float) else ""


def _owner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return model
        model = cast("type[BaseModel]", field.annotation)
    return model
