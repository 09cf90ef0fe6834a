"""A server on loopback that speaks OpenAI's chat completions, in this process, and misbehaves on demand.

It answers whole or streamed, as text or by the JSON schema that it is given, and remembers what it was sent. A fault is for
one request; `always` is for all of them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dspy_toolkit.testing import format_reply

Body = dict[str, Any]
Say = Callable[[Body], Any]
"""Of a request's body: the reply, a text or the fields of one."""


@dataclass(frozen=True)
class Fault:
    """What to do instead of answering."""

    status: int = 200
    message: str = "no"
    code: str | None = None
    retry_after: str | None = None
    raw: bytes | None = None
    """The body, in place of OpenAI's form of an error."""
    hang: bool = False
    drop: bool = False
    """Close the connection without a word."""


BUSY = Fault(429, "Rate limit reached", "rate_limit_exceeded", retry_after="0")
AWAY = Fault(503, "The model is loading")
BROKEN = Fault(raw=b'{"id": "chatcmpl-1", "choices": [{"mess')
HANG = Fault(hang=True)
DROP = Fault(drop=True)
WRONG_KEY = Fault(401, "Incorrect API key provided", "invalid_api_key")
NO_MODEL = Fault(404, "The model does not exist", "model_not_found")
TOO_LONG = Fault(400, "This model's maximum context length is 8192 tokens", "context_length_exceeded")
EMPTY = Fault(raw=b"empty")


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    authorization: str | None
    body: Body


@dataclass
class OpenAIServer:
    """`with OpenAIServer(say) as server:` and `server.address` is the `api_base`."""

    say: Say
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    received: list[Received] = field(default_factory=list)

    def __enter__(self) -> OpenAIServer:
        # LiteLLM gives a thread that has none an event loop at its first call, and leaves it open.
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)
        asyncio.set_event_loop(None)
        self._loop.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def take(self, path: str, authorization: str | None, body: Body) -> Fault | None:
        """Note a request; the fault that it meets."""
        with self._lock:
            self.received.append(Received(path, authorization, body))
            return self.faults.popleft() if self.faults else self.always

    def wait(self) -> None:
        """Hang until the server goes."""
        self._closing.wait(60)


def closed_address() -> str:
    """Where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def _text(said: Any, body: Body) -> str:
    if not isinstance(said, dict):
        return said
    as_json = body.get("response_format") or any("JSON object" in str(turn["content"]) for turn in body["messages"])
    return json.dumps(said) if as_json else format_reply(said)


def _whole(text: str, body: Body) -> Body:
    prompt = sum(len(str(turn["content"]).split()) for turn in body["messages"])
    used = {"prompt_tokens": prompt, "completion_tokens": len(text.split())}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": {**used, "total_tokens": sum(used.values())},
    }


def _pieces(text: str, body: Body) -> list[Body]:
    whole = _whole(text, body)
    about = {"id": whole["id"], "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    words = text.split(" ")
    deltas: list[tuple[Body, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word if n == 0 else f" {word}"}, None) for n, word in enumerate(words)]
    deltas += [({}, "stop")]
    choices = [[{"index": 0, "delta": delta, "finish_reason": reason}] for delta, reason in deltas]
    return [*({**about, "choices": each} for each in choices), {**about, "choices": [], "usage": whole["usage"]}]


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = server.take(self.path, self.headers.get("Authorization"), body)
            if fault is None or fault is EMPTY:
                self._answer(body, "" if fault else _text(server.say(body), body))
            elif fault.hang:
                server.wait()
                self.close_connection = True
            elif fault.drop:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                error = {"error": {"message": fault.message, "type": "error", "code": fault.code}}
                self._send(fault.status, fault.raw or json.dumps(error).encode(), fault.retry_after)

        def _answer(self, body: Body, text: str) -> None:
            if not body.get("stream"):
                self._send(200, json.dumps(_whole(text, body)).encode())
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for piece in _pieces(text, body):
                self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _send(self, status: int, content: bytes, retry_after: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            # LiteLLM keeps its clients, and so their sockets, until they are collected.
            self.send_header("Connection", "close")
            if retry_after is not None:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            self.wfile.write(content)

    return Handler
