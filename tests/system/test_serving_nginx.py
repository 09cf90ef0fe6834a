"""The example of docs/serving.md, "Behind nginx", as it stands but for its ports and paths: TLS, streams that flow, what is closed."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dspy_toolkit.serving.keys import add_key
from dspy_toolkit.settings import Settings
from tests.documentation.shell import ROOT
from tests.serving.conftest import Running, fake, fakes_end, promoted, running, wait_for  # noqa: F401
from tests.system.fresh_clone import _free_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not (NGINX and shutil.which("openssl")), reason="It needs nginx and openssl: apt install nginx openssl."
    ),
]


@pytest.fixture
def proxied(promoted: Settings, tmp_path: Path) -> Iterator[tuple[Running, httpx.Client, str]]:  # noqa: F811
    key, pem = tmp_path / "programs.key", tmp_path / "programs.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-keyout",
        str(key),
        "-out",
        str(pem),
    ]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    example = re.search(r"```nginx\n(.*?)```", page, re.S)
    assert example
    _, text = add_key(promoted, "behind nginx", ("admin",))
    settings, _ = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.1)
    port = _free_port()
    with running(settings) as server:
        said = (
            example[1]
            .replace("/etc/ssl/certs/programs.pem", str(pem))
            .replace("/etc/ssl/private/programs.key", str(key))
        )
        said = said.replace("listen 8443", f"listen 127.0.0.1:{port}").replace(
            "127.0.0.1:8000", f"127.0.0.1:{server.port}"
        )
        folders = "".join(
            f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"pid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\ndaemon off;\nmaster_process off;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{folders}{said}\n}}\n"
        )
        process = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.PIPE)
        trusted = ssl.create_default_context(cafile=str(pem))
        headers = {"Authorization": f"Bearer {text}"}
        try:
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}", verify=trusted, headers=headers, timeout=20
            ) as http:
                wait_for(lambda: process.poll() is not None or _answers(http))
                yield server, http, text
        finally:
            process.terminate()
            process.communicate()


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_proxy_with_tls_hands_on_replies_and_streams(proxied: tuple[Running, httpx.Client, str]) -> None:
    _, http, _ = proxied
    path = "/v1/programs/questions/predict"
    origin = str(http.base_url).rstrip("/")
    assert http.post(path, json={"text": "Who?"}, headers={"Origin": origin}).json()["prediction"] == {
        "label": "person"
    }
    assert http.post(path, json={"text": "Who?"}, headers={"Origin": "https://other.example"}).status_code == 403
    assert http.post(path, json={"text": "Who?"}, headers={"Authorization": "none"}).status_code == 401
    assert http.get("/metrics").status_code == 403 and http.get("/").status_code == 200
    assert http.post(path, content=b"a" * 2_000_000, headers={"Content-Type": "application/json"}).status_code == 413
    began, arrived = time.monotonic(), []
    with http.stream("POST", path.replace("predict", "stream"), json={"text": "Who else?"}) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                arrived.append((line, time.monotonic() - began))
    assert arrived[0][0] == "event: start" and arrived[-1][0] == "event: prediction"
    assert arrived[-1][1] - arrived[0][1] > 0.3  # piece by piece, not all at the end
