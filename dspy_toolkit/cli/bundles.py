"""`dspy-toolkit programs export` and `import`: a program as a file.

Not covered: what a bundle holds and what is refused (`dspy_toolkit.registry.bundle`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.printable import json_text

Form = Literal["bundle", "dspy", "prompt", "mlflow"]
ENDINGS = {"bundle": ".bundle", "dspy": "-dspy", "prompt": ".prompt.json"}


def export_program(
    program: str,
    /,
    *,
    to: Annotated[Path | None, Parameter(name=["--to", "-o"], show_default=False)] = None,
    form: Annotated[Form, Parameter(name="--as")] = "bundle",
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Write a program to a file. Its demonstrations, which are rows of your data, are in it in clear.

    Args:
        program: A project (its champion), project@champion, project@3 or a folder.
        to: The file, for dspy the folder; by default named after the program, in the working folder.
        form: bundle: all of it, for another home, project or machine. dspy: a folder that DSPy loads without the toolkit.
            prompt: the messages as JSON, for any client. mlflow: prompts in MLflow's registry.
        project: Where the program's project is, if it is neither installed nor where it was.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.registry import exports
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    named = program.strip("/").replace("/", "_").replace(":", "_")
    target = to or Path(f"{named}{ENDINGS.get(form, '')}")
    if form == "bundle":
        made = exports.export_bundle(settings, program, target)
    elif form == "dspy":
        made = exports.export_dspy(settings, program, target, project)
    elif form == "prompt":
        made = exports.export_prompt(settings, program, target, project)
    else:
        made = exports.export_mlflow(settings, program, project)
    if json:
        told = {"files": [str(path) for path in made.paths], "prompts": made.prompts, "left_out": made.left_out}
        print(json_text(told, indent=2))
        return
    for path in made.paths:
        print(path)
    for prompt in made.prompts:
        print(f"prompts:/{prompt}")
    if made.left_out:
        print(f"Not in it, since this form has no place for it: {'; '.join(made.left_out)}.", file=sys.stderr)


def import_bundle(
    file: Path,
    /,
    *,
    project: Annotated[str, Parameter(show_default=False)] = "",
    fields: Annotated[tuple[str, ...], Parameter(name="--map", negative="", show_default=False)] = (),
    json: Json = False,
) -> None:
    """Keep the program of a bundle as a version here. It runs no code of the bundle, and promotes nothing.

    Args:
        file: What `dspy-toolkit programs export` wrote.
        project: The project that it becomes a version of, a name or a file; the bundle's own by default.
        fields: OLD=NEW, for a field that the two projects call differently; once for each.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.registry.importing import import_program
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    mapping = {}
    for pair in fields:
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not (old and equals and new):
            raise ProjectError(f"--map {pair!r} is not OLD=NEW. Write the bundle's field, =, the project's.")
        mapping[old] = new
    made = import_program(settings, file, project, mapping)
    if json:
        print(json_text(made.model_dump(mode="json"), indent=2))
        return
    name = f"{made.project}@{made.version}"
    if made.there_already:
        print(f"{name} is this program already; nothing was changed.")
        return
    print(f"Imported as {name}. It is not live: `dspy-toolkit programs reprove {name}` asks the gate.")
    if not made.fits:
        print(
            f"No project called {made.project} is known here, so nobody has seen whether it fits. Say where it is: "
            f"location in [projects.{made.project}] of dspy-toolkit.toml.",
            file=sys.stderr,
        )
