"""A network of the test's own: a relay on loopback whose cable can be pulled."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Relay:
    """Passes connections on to a port, while it is not cut."""

    def __init__(self, to: int) -> None:
        self._to, self._cut = to, False
        self._pairs: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listening.close()

    def cut(self) -> None:
        """Drop what is connected, and let nobody connect."""
        with self._lock:
            self._cut = True
            for each in self._pairs:
                _drop(each)
            self._pairs.clear()

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                came, _ = self._listening.accept()
                with self._lock:
                    if self._cut:
                        _drop(came)
                        continue
                    try:
                        onward = socket.create_connection(("127.0.0.1", self._to), timeout=10)
                    except OSError:  # nobody there: as without a relay
                        _drop(came)
                        continue
                    onward.settimeout(None)
                    self._pairs += [came, onward]
                for one, other in ((came, onward), (onward, came)):
                    threading.Thread(target=_pass, args=(one, other), daemon=True).start()


def _pass(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):  # cut
        while data := one.recv(65536):
            other.sendall(data)
    _drop(one)
    _drop(other)


def _drop(each: socket.socket) -> None:
    with suppress(OSError):  # gone already
        each.shutdown(socket.SHUT_RDWR)
    each.close()
