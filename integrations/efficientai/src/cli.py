"""`efficientai-toolkit dspy-toolkit:COMMAND …`: every command of `dspy-toolkit` inside the EfficientAI-MLX-Toolkit.

Its loader finds `projects/*/src/cli.py`, imports it as `cli`, and calls `app(standalone_mode=False)` with the command and its
arguments in `sys.argv`. It takes whatever ends with `SystemExit` for a failure, and looks at no returned exit code: so a command
that did well returns, and one that did not raises.

Needed besides dspy-toolkit: typer, which that toolkit has.
"""

from __future__ import annotations

import os

import typer

from dspy_toolkit.cli import app as commands
from dspy_toolkit.cli import boundary, main

THEIRS, OURS = "MLFLOW_TRACKING_URI", "DSPY_TOOLKIT_REGISTRY__TRACKING_URI"

app = typer.Typer(
    name="dspy-toolkit",
    help="Optimize DSPy programs, prove them on sealed data, keep, serve and watch the versions.",
    add_completion=False,
    no_args_is_help=True,
)


def _add(name: str) -> None:
    # dspy-toolkit reads the arguments, --help too.
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, help=commands[name].help, context_settings=passed_on)
    def run(context: typer.Context) -> None:
        with boundary():
            _share_tracking()
        try:
            main([name, *context.args])
        except SystemExit as ended:
            if ended.code:
                raise


def _share_tracking() -> None:
    """Runs and versions go to the toolkit's MLflow, unless a setting of our own names another one."""
    from dspy_toolkit.settings import load_settings

    if (address := os.environ.get(THEIRS)) and load_settings().registry.tracking_uri is None:
        os.environ[OURS] = address


for _name in sorted(commands):
    if not _name.startswith("-"):
        _add(_name)
