"""A flow started by hand: its arguments as options, its progress as bars, its errors as one line, Ctrl-C obeyed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from dspy_toolkit.errors import ToolkitError

PATIENCE_SECONDS = 8.0
"""After Ctrl-C: how long Prefect may try to reach a server that the same Ctrl-C has stopped."""


def run_at_terminal(flow: Any) -> None:
    """Run `flow` with the arguments of the command line, and end the process as `dspy_toolkit.cli.boundary` says."""
    from cyclopts import App

    from dspy_toolkit.cli.boundary import boundary, show_log
    from dspy_toolkit.display.progress import terminal
    from dspy_toolkit.settings import load_settings
    from flows.temporary_server import watch_this_process

    module = sys.modules["__main__"].__spec__
    name = f"python -m {module.name}" if module else flow.name
    app = App(name=name, help=flow.fn.__doc__, version_flags=[], result_action="return_value")
    app.default(flow.fn)
    command, bound, _ = app.parse_args(sys.argv[1:])
    if command is not flow.fn:  # --help was asked for, and is given here
        command(*bound.args, **bound.kwargs)
        return
    with boundary():
        settings = load_settings()
        show_log(settings)
        check_home(settings)
        watch_this_process()
        with interruptible(), server_answers(), terminal() if settings.observe.progress else nullcontext():
            flow(*bound.args, **bound.kwargs)


class ServerAway(ToolkitError):
    """The Prefect server that a run reports to answers no more."""


@contextmanager
def server_answers() -> Iterator[None]:
    """Say in one line that the Prefect server is away; its client has then tried each request for about a minute.

    Raises:
        ServerAway: the server could not be reached.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL

    try:
        yield
    except httpx.TransportError as error:  # what the run's own models fail with has a name of the toolkit's
        raise ServerAway(
            f"The Prefect server at {PREFECT_API_URL.value()} does not answer: {error}. What was computed is kept: start the server "
            "again, and run the same command to go on."
        ) from error


def check_home(settings: Any) -> None:
    """Raise StoreError unless the home can be written: Prefect would wait for minutes for a server that cannot start."""
    from dspy_toolkit.durable import make_home, writing

    home = settings.path()
    make_home(home)
    with writing(home), tempfile.TemporaryFile(dir=home) as probe:
        probe.write(b"\0" * 2**16)


@contextmanager
def interruptible() -> Iterator[None]:
    """End with code 130 on Ctrl-C or SIGTERM, whatever the interrupt was turned into on its way, and within PATIENCE_SECONDS."""
    from dspy_toolkit.optimizers.generators.output_capture import capture_disabled

    interrupted = threading.Event()

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # the first is enough
        interrupted.set()
        # Before anything is printed: printing to a closed pipe raises.
        threading.Thread(target=_end_soon, daemon=True).start()
        with capture_disabled():  # an optimizer may be captured just now
            print("\nInterrupted. What was computed is kept: run the same command again to go on.", file=sys.stderr)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException as error:
        if interrupted.is_set() and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if not interrupted.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_soon() -> None:
    """Prefect's temporary server was stopped by the same signal, and its client tries to reach it for minutes."""
    import time

    import psutil

    time.sleep(PATIENCE_SECONDS)
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(130)
