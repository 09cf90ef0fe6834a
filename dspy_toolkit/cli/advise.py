"""`dspy-toolkit advise`: a configuration from measured ground, from a description or from options.

Not covered: optimizing the program that reads descriptions (`python -m flows.optimize_program --project …`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import StoreError

if TYPE_CHECKING:
    from dspy_toolkit.advising import Advice, Advisor
    from dspy_toolkit.settings import Settings


def advise(
    project: str,
    description: str = "",
    /,
    *,
    yaml: Annotated[Path | None, Parameter(show_default=False)] = None,
    tool: str = "",
    probe: bool = False,
    trials: Annotated[int, Parameter(name="--try", validator=Number(gte=0, lte=10), show_default=False)] = 0,
    json: Json = False,
    **fields: Annotated[str, Parameter(name="--FIELD", help="What is known, by its name: --memory 16GB.")],
) -> None:
    """Advise on a project: what to run, what to expect, why, and what was not known.

    Args:
        project: lora, diffusion, clip, federated, or an installed project with an advisor.
        description: What you have and want, in your own words.
        yaml: Write the configuration there, in the real tool's format.
        tool: Which tool's format; the project's first when left out.
        probe: Run the advised configuration once here, and say how it compares.
        trials: Run so many of the best candidates here by successive halving, and add them to your own landscape.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.advising import load_advisor
    from dspy_toolkit.advising.advice import advise as ask
    from dspy_toolkit.advising.trying import own_runs
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    advisor = load_advisor(project)
    given = {name.replace("-", "_"): value for name, value in fields.items()}
    advice = ask(advisor, description, settings=settings, own=own_runs(settings.path(), advisor.name), **given)
    written = advice.configuration.to_yaml(tool)
    if yaml is not None:
        _write(yaml, written)
    tried = _tried(advisor, advice, settings, probe=probe, count=trials)
    if json:
        _print_json(advice, tool, tried)
        return
    _print(advice, written, tried, yaml)


def _write(path: Path, text: str) -> None:
    from dspy_toolkit.durable import write_file

    if path.is_dir():
        raise StoreError(f"{path} is a folder. Give a file: --yaml {path / 'config.yaml'}.")
    write_file(path.absolute(), text.encode())


def _tried(advisor: Advisor, advice: Advice, settings: Settings, *, probe: bool, count: int) -> list[str]:
    """What running it here showed, a line each."""
    from dspy_toolkit.advising.trying import probe as run_once
    from dspy_toolkit.advising.trying import try_out

    lines = []
    if probe:
        trial = run_once(advisor, advice, settings.path())
        lines.append(
            f"Probe: {advisor.describe(trial.loss)} in one run here, {trial.cpu_seconds:g} CPU seconds; predicted was "
            f"{advisor.describe(advice.expected)}."
        )
    if count:
        for place, trial in enumerate(try_out(advisor, advice, count, settings.path()), 1):
            named = ", ".join(f"{name} {value}" for name, value in trial.configuration.items())
            lines.append(f"Tried {place}: {named}: {advisor.describe(trial.loss)} over {len(trial.losses)} seeds.")
    return lines


def _print(advice: Advice, written: str, tried: list[str], yaml: Path | None) -> None:
    from dspy_toolkit.advising.advice import stated
    from dspy_toolkit.display.tables import console

    out = console()
    lines = [f"Understood ({advice.read_by}): {stated(advice.situation)}", "", advice.text, *tried, ""]
    lines.append(f"Written to {yaml}." if yaml is not None else written.rstrip())
    for line in lines:
        out.print(line, markup=False, highlight=False)


def _print_json(advice: Advice, tool: str, tried: list[str]) -> None:
    from dspy_toolkit.printable import json_text

    print(json_text({**advice.as_json(tool), "tried": tried}))
