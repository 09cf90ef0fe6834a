"""`dspy-toolkit programs migrate` and `reprove`: saved programs on the day that a signature, DSPy, the rows or the model change."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from dspy_toolkit.pipeline.reprove import Reproof
    from dspy_toolkit.settings import Settings

STDERR = 2
Names = Annotated[tuple[str, ...], Parameter(show_default=False)]


def migrate_programs(
    projects: Names = (),
    /,
    *,
    project: Annotated[str, Parameter(show_default=False)] = "",
    write: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Json = False,
) -> None:
    """See whether saved versions still fit their projects, and bring manifests of earlier toolkits to today's form.

    The exit code is 1 where a champion does not fit or cannot be read.

    Args:
        projects: Names in the registry; all of them when none is given.
        project: Where the project is, for one name whose project is neither installed nor where it was.
        write: Write manifests of earlier forms anew. Programs are never changed.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.registry import list_projects
    from dspy_toolkit.registry.fitting import migrate
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    names = list(projects) or list_projects(settings)
    found = [fit for name in names for fit in migrate(settings, name, project, write=write)]
    if json:
        print(json_text([fit.model_dump(mode="json") for fit in found], indent=2))
    elif not found:
        print(f"No program is saved in {settings.path()} yet.")
    else:
        rows = [
            (
                f"{fit.project}@{fit.version}" + (" champion" if fit.champion else ""),
                f"{fit.schema_version} → today's" if fit.written else fit.schema_version,
                fit.state,
                fit.what,
            )
            for fit in found
        ]
        console().print(listing(("version", "form", "state", ""), rows))
    if any(fit.champion and fit.state in ("does not fit", "cannot be read") for fit in found):
        raise SystemExit(1)


def reprove_programs(
    programs: Names = (),
    /,
    *,
    model: Annotated[str, Parameter(show_default=False)] = "",
    tolerance: Annotated[float, Parameter(validator=validators.Number(gte=0, lt=1))] = 0.05,
    optimize: Literal["none", "fell", "undecided"] = "none",
    json: Json = False,
) -> None:
    """Ask the gate again, on the sealed rows, whether champions hold; nothing is promoted.

    With a model, each champion on it is compared with itself on today's model; without, with the project's own program. A
    version that is not live is compared with the champion, and `programs promote` obeys what comes out. Beside it stand
    the scores on sealed rows of when it was made and of today. The exit code is 1 where one fell, was refused or could not be
    run, and that of its optimization where one failed.

    Args:
        programs: Projects, or versions as project@3; every champion when none is given.
        model: The model to move to, as lm.model names it.
        tolerance: The loss, as a share, that is put up with on another model.
        optimize: Start an optimization of every champion that fell; with undecided, of those too. It needs a clone's flows.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console, listing
    from dspy_toolkit.registry import champion, list_projects
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    names = programs or tuple(name for name in list_projects(settings) if champion(settings, name).version is not None)
    found, failed = _ask_all(settings, names, model, tolerance)
    if json:
        told = [made.model_dump(mode="json") for made in found]
        told += [{"project": name, "outcome": "could not be run", "reason": why} for name, why in failed.items()]
        print(json_text(told, indent=2))
    elif not names:
        print(f"Nothing is promoted in {settings.path()} yet.")
    else:
        rows = [
            (
                f"{made.project}@{made.version}",
                made.outcome,
                *(f"{score.mean:.3f}" if score else "" for score in (made.score_then, made.score)),
                made.question,
                f"{made.reason} {made.note}".rstrip(),
            )
            for made in found
        ]
        rows += [(name, "could not be run", "", "", "", why) for name, why in failed.items()]
        console().print(listing(("program", "outcome", "then", "now", "question", ""), rows))
    wanted = {"none": (), "fell": ("fell",), "undecided": ("fell", "undecided")}[optimize]
    code = _optimize([made for made in found if made.outcome in wanted], model)
    if code or failed or any(made.outcome in ("fell", "refused") for made in found):
        raise SystemExit(code or 1)


def _ask_all(
    settings: Settings, names: tuple[str, ...], model: str, tolerance: float
) -> tuple[list[Reproof], dict[str, str]]:
    """The answers, and for each program that could not be asked about the reason."""
    from dspy_toolkit.cli.boundary import message_of
    from dspy_toolkit.pipeline.reprove import reprove

    found: list[Reproof] = []
    failed: dict[str, str] = {}
    for name in names:
        print(f"{name} …", file=sys.stderr)
        try:
            found.append(reprove(settings, name, model=model, tolerance=tolerance))
        except Exception as error:  # isolation boundary: one program of many
            if (message := message_of(error)) is None:
                raise
            failed[name] = message
    return found, failed


def _optimize(made: list[Reproof], model: str) -> int:
    """Optimize the projects of `made` one after the other, on the model that they are moved to.

    Returns:
        The exit code of the last one that failed; 1 where the flows are not here; else 0.
    """
    if not made:
        return 0
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    has_flows = importlib.util.find_spec("flows") is not None
    sys.path.pop(0)
    environment = os.environ | ({"DSPY_TOOLKIT_LM__MODEL": model} if model else {})
    failed = 0
    for each in made:
        command = ["-m", "flows.optimize_program", "--project", each.location or each.project]
        if not has_flows:
            before = f"DSPY_TOOLKIT_LM__MODEL={model} " if model else ""
            print(f"The flows are not here. In a clone, run: {before}python {' '.join(command)}", file=sys.stderr)
            failed = 1
            continue
        # stdout is this command's own, and may be read as JSON.
        code = subprocess.run([sys.executable, *command], env=environment, stdout=STDERR, check=False).returncode
        if code:
            failed = code if code > 0 else 128 - code  # as a shell gives a signal
            print(f"The optimization of {each.project} failed, with exit code {failed}.", file=sys.stderr)
    return failed
