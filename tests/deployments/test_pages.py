"""Our pages over real HTTP: a project over time, figures for Prometheus, alerts with a token."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments import pages
from deployments.places import Places, Ports
from dspy_toolkit.monitoring.alerts import read
from dspy_toolkit.monitoring.sequential import fall_of
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.looks import keep_look
from dspy_toolkit.tracking.runs import record_run


def record_night(home: Settings, outcome: str = "promoted", **metrics: float) -> None:
    """As `pipeline.record` does; tests/pipeline has the real one."""
    measured = {"val_candidate": 0.6, "compile_lm_calls": 300, "compile_prompt_tokens": 9_000, "compile_seconds": 61.0}
    tags = {"outcome": outcome, "version": 2, "reason": "<b>Better</b>."}
    params = {"optimizer": "auto", "winner": "mipro", "levers": "format plain", "model": "mlx/tiny"}
    record_run(home, "questions", "optimize questions", params, measured | metrics, tags=tags)


def record_look(home: Settings) -> None:
    from dspy_toolkit.monitoring.watching import Watch

    fall = fall_of([1.0] * 30 + [0.0] * 30, 0.9)
    nothing: dict[str, Any] = dict.fromkeys(("fresh", "liked", "seconds_median", "seconds_p95", "calibration"))
    keep_look(
        home,
        Watch(
            **nothing, project="questions", version=2, reference=0.9, reference_rows=100, served=fall, replies=80, labelled=60,
            parse_failures=0, drift=(), asked_again=8, otherwise=0,
        ),
        "monitor",
    )  # fmt: skip


@pytest.fixture
def site(home: Settings, tmp_path: Path) -> Iterator[tuple[str, Places]]:
    record_night(home)
    record_night(home, "refused", sealed_candidate=0.62, sealed_champion=0.6, sealed_delta=0.02, sealed_delta_low=-0.04,
                 sealed_delta_high=0.08)  # fmt: skip
    record_look(home)
    places = Places(tmp_path, home, Ports())
    server: ThreadingHTTPServer = pages.serve(places, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", places
    server.shutdown()
    server.server_close()
    thread.join()


def get(address: str, **headers: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def post(address: str, body: bytes, token: str) -> int:
    asked = urllib.request.Request(
        address, body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_project_over_time(site: tuple[str, Places]) -> None:
    address, _ = site
    assert "/projects/questions" in get(address)[1]
    code, page, headers = get(f"{address}/projects/questions")
    assert code == 200 and "script" not in page and "default-src 'none'" in headers["Content-Security-Policy"]
    for said in ("promoted as 2", "auto: mipro", "format plain", "+2.0", "62.0 %", "9,000"):
        assert said in page, said
    assert "<b>Better" not in page, "what is recorded is escaped"
    assert page.count("<circle") == 5
    assert get(f"{address}/projects/nobody")[0] == 404
    assert get(f"{address}/healthz")[:2] == (200, "ok\n")
    assert get(address, Host="evil.example")[0] == 403


def test_figures_for_prometheus(site: tuple[str, Places]) -> None:
    text = get(f"{site[0]}/metrics")[1]
    assert 'dspy_toolkit_program_sealed_score{project="questions"} 0.62' in text
    assert 'dspy_toolkit_program_served_rows{project="questions"} 60.0' in text
    assert 'dspy_toolkit_program_promotions{project="questions"} 1.0' in text
    if shutil.which("promtool") is not None:
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_needs_the_token(site: tuple[str, Places]) -> None:
    address, places = site
    said = json.dumps({"subject": "failed optimize-program", "body": "why"}).encode()
    assert post(f"{address}/alerts", said, "guess") == 401
    assert post(f"{address}/alerts", b"[]", places.alerts_token) == 400
    assert post(f"{address}/alerts", b"x" * 70_000, places.alerts_token) == 413
    assert post(f"{address}/alerts", said, places.alerts_token) == 200
    assert [each.subject for each in read(places.settings)] == ["failed optimize-program"]
    assert "failed optimize-program" in get(address)[1]
