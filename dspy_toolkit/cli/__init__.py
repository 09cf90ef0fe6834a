"""The command `dspy-toolkit`: one file for each noun.

advise    a configuration from measured ground
boundary  how a command ends: errors, Ctrl-C, closed pipes
deploy    a project of the user's own on a schedule, with Prefect
doctor    checks this machine, home and configuration
fetch     the embedded model, into this environment
gate      two files of scores: is the new program better?
history   earlier optimizations
judge     whether a judge agrees with people
predict   run a program
programs  list, show and roll back saved programs
serve     programs behind an HTTP API, and its keys
data      rows from what users said of answers
findings  what doctor checks; model_findings, of the models

The commands import heavy packages when they run, so that help is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import App

from dspy_toolkit.cli import data, gate, judge, programs, serve
from dspy_toolkit.cli.advise import advise
from dspy_toolkit.cli.boundary import boundary
from dspy_toolkit.cli.deploy import deploy
from dspy_toolkit.cli.doctor import doctor
from dspy_toolkit.cli.fetch import fetch_model
from dspy_toolkit.cli.history import history
from dspy_toolkit.cli.predict import predict

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
app.command(deploy)
app.command(doctor)
app.command(fetch_model)
app.command(history)
judge_app = App(name="judge", help="Look into a judge before you trust it.")
judge_app.command(judge.agreement)
app.command(judge_app)
app.command(predict)
gate_app = App(name="gate")
gate_app.default(gate.judge)
gate_app.command(gate.power)
app.command(gate_app)
programs_app = App(name="programs", help="List, show and roll back saved programs.")
programs_app.command(programs.list_programs, name="list")
programs_app.command(programs.show_program, name="show")
programs_app.command(programs.roll_back, name="rollback")
app.command(programs_app)
serve_app = App(name="serve")
serve_app.default(serve.serve)
keys_app = App(name="keys", help="Make, list and revoke the keys of those who may ask.")
keys_app.command(serve.add_key, name="add")
keys_app.command(serve.list_keys, name="list")
keys_app.command(serve.revoke_key, name="revoke")
serve_app.command(keys_app)
app.command(serve_app)
data_app = App(name="data", help="Rows of a dataset.")
data_app.command(data.from_feedback)
app.command(data_app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process.

    Args:
        arguments: in place of the process's own.
    """
    with boundary():
        from dspy_toolkit.display.tables import console

        app(list(arguments) if arguments is not None else None, console=console(), error_console=console(stderr=True))
