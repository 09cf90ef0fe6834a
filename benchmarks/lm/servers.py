"""Servers on loopback that speak OpenAI's chat interface: mlx_lm's and llama-cpp-python's, each with its defaults."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import dspy

from benchmarks.lm.peers import Answer, Messages, Place, options, peer_adapter
from dspy_toolkit.lm.meter import MeteredLM

SECONDS = 300
"""A request, and a server's start, may take no longer."""


def mlx_server(place: Place) -> Server:
    """mlx_lm's server on the float32 weights, with its defaults."""
    command = [sys.executable, "-m", "benchmarks.lm.serve_mlx", "--model", str(place.folder), "--log-level", "WARNING"]
    return Server(command, place.log, takes_schema=False)


def llama_server(place: Place) -> Server:
    """llama-cpp-python's server on the GGUF, with as many threads as there are cores; it keeps the last prompt's cache."""
    threads = str(place.threads)
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(place.gguf), "--model_alias", Server.model]
    command += ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", "4096", "--verbose", "false"]
    return Server(command, place.log, takes_schema=True)


class Server:
    """A server on loopback that speaks OpenAI's chat interface."""

    model = "default_model"

    def __init__(self, command: list[str], log: Path, *, takes_schema: bool) -> None:
        """Args: command: starts it, less `--host` and `--port`; takes_schema: whether JSON can be asked for by schema.

        Raises:
            RuntimeError: it ended, or did not answer within SECONDS.
        """
        import httpx

        self._takes_schema, self._log = takes_schema, log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/v1"
        # LiteLLM's own proxy setting must not send loopback traffic elsewhere.
        os.environ["NO_PROXY"] = "127.0.0.1"
        self._output = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=self._output, stderr=subprocess.STDOUT
        )
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.Client(timeout=SECONDS, limits=limits, trust_env=False)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        import httpx

        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if (code := self._process.poll()) is not None:
                raise RuntimeError(f"The server ended with code {code}; its last words: {self._last_words()}")
            try:
                # A request, not a health check: the model may be loaded by the first.
                self._post([{"role": "user", "content": "Hello"}], 1).raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.3)
        raise RuntimeError(f"The server did not answer within {SECONDS} s.")

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace").strip()[-400:]

    def _body(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature] | None) -> dict[str, Any]:
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0.0}
        if self._takes_schema and signature is not None and "configuration" in signature.output_fields:
            from benchmarks.lm.workloads import LoraConfiguration

            body["response_format"] = {"type": "json_object", "schema": LoraConfiguration.model_json_schema()}
        return body

    def _post(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature] | None = None) -> Any:
        return self._client.post(f"{self.address}/chat/completions", json=self._body(messages, max_tokens, signature))

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        server = {"api_base": self.address, "api_key": "none", "timeout": SECONDS}
        return MeteredLM(f"openai/{self.model}", **options(max_tokens), **server), peer_adapter()

    def ask(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Answer:
        answer = self._post(messages, max_tokens, signature).raise_for_status().json()
        return Answer(answer["choices"][0]["message"].get("content") or "", answer["usage"]["completion_tokens"])

    def stream(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Generator[str]:
        body = {**self._body(messages, max_tokens, signature), "stream": True}
        with self._client.stream("POST", f"{self.address}/chat/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
                if piece := (choices[0].get("delta") or {}).get("content"):
                    yield piece

    def drop(self) -> None:
        """They take some seconds."""

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        # Threads may still be waiting for an answer that will not come: closing under them ends their waiting.
        threading.Thread(target=self._client.close, daemon=True).start()
