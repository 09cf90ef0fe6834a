"""A socket to serve on, and uvicorn around it: saying where it listens once it answers, ending as a command does.

SIGTERM and Ctrl-C stop accepting; what was accepted is finished, within the longest deadline. After SIGTERM the process ends with
exit code 0, since it was told to end, and after Ctrl-C as every command.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import uvicorn

from dspy_toolkit.errors import SettingsError
from dspy_toolkit.serving.service import Service

BACKLOG = 2048


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at an address.

    Raises:
        SettingsError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            made.listen(BACKLOG)
        except OSError as error:
            raise SettingsError(
                f"Cannot listen at {host}:{port}: {error.strerror or error}. Take another with --port, or stop what is there."
            ) from None
        yield made
    finally:
        made.close()


class Server(uvicorn.Server):
    """uvicorn, for one application of ours; `run(sockets=[…])` serves until a signal."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """See `uvicorn.Server`. It raises each signal once more when all is done; a SIGTERM that was obeyed is over."""
        with super().capture_signals():
            yield
            self._captured_signals = [each for each in self._captured_signals if each != signal.SIGTERM]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        if self.should_exit or not sockets:
            return
        host, port = sockets[0].getsockname()[:2]
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        served = ", ".join(str(entry.standing.live) for entry in self._service.entries.values())
        print(f"Serving {served} at {where} (a page to try it; Ctrl-C stops)", flush=True)
