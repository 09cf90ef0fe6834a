"""The command `dspy-toolkit`: one file for each noun.

advise    a configuration from measured ground
boundary  how a command ends: errors, Ctrl-C, closed pipes
chat      talk with a program or the plain model
deploy    a project of the user's own on a schedule, with Prefect
config    the settings in force, changing one, checking a file
docs      the documentation of a clone: build, check
doctor    checks this machine, home and configuration
fetch     the embedded model, into this environment
gate      two files of scores: is the new program better?
history   earlier optimizations
judge     whether a judge agrees with people
serve     programs behind an HTTP API, and its keys
data      rows from what users said of answers
mcp       the door for coding agents
predict   run a program
programs  what is saved: list, history; showing: show, diff
replay    one row again, step by step
projects  what there is to optimize: list, show, new, validate
promotion  programs promote, rollback, delete
bundles   programs export, import
migration  programs migrate, reprove

The commands import heavy packages when they run, so that help is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import App

from dspy_toolkit.cli import (
    bundles,
    config,
    data,
    docs,
    gate,
    judge,
    migration,
    programs,
    projects,
    promotion,
    serve,
    showing,
)
from dspy_toolkit.cli.advise import advise
from dspy_toolkit.cli.boundary import boundary
from dspy_toolkit.cli.chat import chat
from dspy_toolkit.cli.deploy import deploy
from dspy_toolkit.cli.doctor import doctor
from dspy_toolkit.cli.fetch import fetch_model
from dspy_toolkit.cli.history import history
from dspy_toolkit.cli.mcp import mcp
from dspy_toolkit.cli.predict import predict
from dspy_toolkit.cli.replay import replay

if TYPE_CHECKING:
    from cyclopts import CycloptsError
    from rich.text import Text

__all__ = ["app", "boundary", "main"]


def _version() -> str:
    from importlib.metadata import version

    return f"dspy-toolkit {version('dspy-toolkit')}"


def _usage_error(error: CycloptsError) -> Text:
    from rich.text import Text

    chain = " ".join(["dspy-toolkit", *(error.command_chain or ())])
    return Text(f"Error: {error}\nRun `{chain} --help`.")


app = App(
    name="dspy-toolkit",
    help="Optimize DSPy programs on your own machine, prove them on sealed data, keep and run the versions.\n\n"
    "Settings come from dspy-toolkit.toml and from DSPY_TOOLKIT_… variables; `dspy-toolkit doctor` shows them.",
    version=_version,
    help_format="plaintext",
    group_parameters="Options",
    error_formatter=_usage_error,
)
app.command(advise)
app.command(chat)
app.command(deploy)
config_app = App(name="config", help="The settings: what is in force, changing one, checking a file.")
config_app.command(config.show, name="show")
config_app.command(config.change, name="set")
config_app.command(config.check, name="check")
app.command(config_app)
docs_app = App(name="docs", help="Make the documentation of a clone of the toolkit, and check it.")
docs_app.command(docs.build)
docs_app.command(docs.check)
app.command(docs_app)
app.command(doctor)
app.command(fetch_model)
app.command(history)
judge_app = App(name="judge", help="Look into a judge before you trust it.")
judge_app.command(judge.agreement)
app.command(judge_app)
app.command(mcp)
app.command(predict)
app.command(replay)
gate_app = App(name="gate")
gate_app.default(gate.judge)
gate_app.command(gate.power)
app.command(gate_app)
programs_app = App(
    name="programs", help="Look at saved programs, change what is live, move them, and prove them again."
)
programs_app.command(programs.list_programs, name="list")
programs_app.command(showing.show_program, name="show")
programs_app.command(showing.diff_programs, name="diff")
programs_app.command(programs.show_champions, name="history")
programs_app.command(promotion.promote_program, name="promote")
programs_app.command(promotion.roll_back, name="rollback")
programs_app.command(promotion.delete_program, name="delete")
programs_app.command(bundles.export_program, name="export")
programs_app.command(bundles.import_bundle, name="import")
programs_app.command(migration.migrate_programs, name="migrate")
programs_app.command(migration.reprove_programs, name="reprove")
app.command(programs_app)
serve_app = App(name="serve")
serve_app.default(serve.serve)
keys_app = App(name="keys", help="Make, list and revoke the keys of those who may ask.")
keys_app.command(serve.add_key, name="add")
keys_app.command(serve.list_keys, name="list")
keys_app.command(serve.revoke_key, name="revoke")
serve_app.command(keys_app)
app.command(serve_app)
data_app = App(name="data", help="Check the rows of a project, split them, look at them, and make rows of feedback.")
data_app.command(data.check)
data_app.command(data.split)
data_app.command(data.show)
data_app.command(data.from_feedback)
app.command(data_app)
projects_app = App(name="projects", help="List projects, look at one, write a new one, and find what is wrong with it.")
projects_app.command(projects.list_all, name="list")
projects_app.command(projects.show_project, name="show")
projects_app.command(projects.new, name="new")
projects_app.command(projects.validate_project, name="validate")
app.command(projects_app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process.

    Args:
        arguments: in place of the process's own.
    """
    with boundary():
        from dspy_toolkit.display.tables import console

        app(list(arguments) if arguments is not None else None, console=console(), error_console=console(stderr=True))
