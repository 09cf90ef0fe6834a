"""`dspy-toolkit programs promote`, `rollback` and `delete`: changing what is live, and what is there.

Not covered: how a verdict is reached (the flow `optimize_program`, `programs reprove`).
"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text


def promote_program(
    program: str,
    /,
    *,
    force: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    reason: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Make a version the champion, where the gate's verdict kept with it says that it is better than today's.

    Args:
        program: project@3.
        force: Promote it past the gate; needs a reason.
        reason: Why, for whoever looks later: it is kept with the version.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.registry.verdicts import promote_by_verdict
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    made = promote_by_verdict(settings, program, force=force, reason=reason)
    if json:
        print(json_text(made.model_dump(mode="json"), indent=2))
        return
    why = (
        f"past the gate: {made.forced}" if made.forced else made.verdict.reason if made.verdict else "nothing was live"
    )
    before = "It is the first one" if made.replaced is None else f"It replaces version {made.replaced}"
    print(f"{made.project}: version {made.version} is the champion. {before}; {why}")


def roll_back(project: str, /, *, json: Json = False) -> None:
    """Make the program that the champion replaced the champion again.

    The version rolled back from stays saved. A second rollback goes one further back.

    Args:
        project: A project's name or file.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.registry import champion, rollback
    from dspy_toolkit.registry.references import project_name
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    name = project_name(project)
    before = champion(settings, name).version
    after = rollback(settings, name)
    if json:
        print(json_text({"project": name, "version": after, "rolled_back_from": before}, indent=2))
        return
    print(f"{name}: the champion was version {before} and is version {after} now.")


def delete_program(program: str, /, *, json: Json = False) -> None:
    """Delete a version that is not live. Its run stays in MLflow, with its files.

    Args:
        program: project@3, with the version's number.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.registry.deleting import delete_version
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    gone = delete_version(settings, program)
    if json:
        print(json_text(gone.model_dump(mode="json"), indent=2))
        return
    print(f"{gone.project}: version {gone.version} is deleted. Its files are still in the MLflow run {gone.run_id}.")
