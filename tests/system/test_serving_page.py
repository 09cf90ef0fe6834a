"""The page at `/`, in Debian's Chromium: a form from the signature, fields, bars, versions side by side, keyboard, phone.

`SCREENSHOTS=docs/images python -m pytest tests/system/test_serving_page.py -m system` writes the pictures of the documentation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, promote, save_version
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import runs as tracking
from tests.serving.conftest import Running, fake, fakes_end, running, serving  # noqa: F401

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium on this machine: apt install chromium."),
]
LABELS = ("lora", "diffusion", "clip", "federated", "compression", "meta-learning")


def save(home: Settings, lean: float) -> int:
    """A version of the router whose labels are scored, leaning towards the first."""
    from dspy_toolkit.lm.levers import pull

    program = load_project("router").build()
    eye = [[float(i == j) for j in range(6)] for i in range(6)]
    rule = {"labels": LABELS, "weights": eye, "bias": [lean, 0, 0, 0, 0, 0], "method": "label-weights", "rows": 84}
    pull(program, format="plain", labels={"project": rule})
    manifest = Manifest(
        project="router", optimizer="labels", model="mlx/smollm2-135m@00000000", metric="exact_match",
        signature_fields={name: str(kind) for name, kind in fields_of(program).items()},
        signature_sha256=signature_hash(program), reports={"sealed": {"mean": 0.62, "low": 0.5, "high": 0.73, "n": 63}},
    )  # fmt: skip
    run_id = tracking.open_run(home, "router", "optimize router")
    return save_version(home, "router", state_of(program), manifest, run_id)


def chances(request: Any) -> dict[str, float]:
    if "rank" in request.messages[-1].content:
        return dict(zip(LABELS, (0.58, 0.1, 0.08, 0.06, 0.14, 0.04), strict=True))
    return dict(zip(LABELS, (0.1, 0.7, 0.05, 0.05, 0.05, 0.05), strict=True))


@pytest.fixture
def server(home: Settings) -> Iterator[Running]:
    save(home, 0.0)
    promote(home, "router", save(home, 0.7))
    settings, _ = fake(home, chances)
    with running(serving(settings, fall_back_on=())) as found:
        yield found


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def picture(page: Any, name: str, tmp_path: Path, *, whole: bool = False) -> None:
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / name), full_page=whole)
    assert (folder / name).stat().st_size < 150_000


def test_a_program_is_tried_by_keyboard_and_two_versions_side_by_side(
    server: Running, browser: Any, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 700})
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(server.address)
    page.get_by_label("request").fill("Which rank should my adapter have for 400 notes?")
    page.get_by_label("Beside it").fill("1")
    page.get_by_label("show the prompt").check()
    page.keyboard.press("Control+Enter")
    page.locator("article .rate:visible").nth(1).wait_for()
    cards = page.locator("article")
    assert cards.count() == 2
    assert sorted(card.locator("h2").inner_text() for card in cards.all()) == [
        "router, version 1",
        "router, version 2",
    ]
    for card in cards.all():
        assert card.locator(".outputs dd").first.inner_text() == "lora"
        assert card.locator(".bar").count() == 6 and card.locator(".bar.best").inner_text().startswith("lora")
        assert card.locator(".sent").is_visible()
    picture(page, "serving-page.png", tmp_path, whole=True)
    cards.first.get_by_role("button", name="Right").click()
    cards.first.get_by_text("Noted.").wait_for()
    # Text goes in as text, and nothing is asked of anybody else.
    page.get_by_label("request").fill("<img src=x onerror=alert(1)>")
    page.get_by_label("Beside it").fill("")
    page.get_by_role("button", name="Ask").click()
    page.locator("article .rate:visible").first.wait_for()
    page.locator(".sent summary").first.click()
    assert page.locator("article img").count() == 0 and "<img src=x" in page.locator("article pre").last.inner_text()
    assert all(url.startswith(server.address) for url in asked) and not wrong


def test_it_fits_a_phone_and_says_what_is_wrong(server: Running, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 700}, has_touch=True)
    page.goto(server.address)
    page.get_by_label("request").fill("a" * 30_000)
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("30,000 characters").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.goto(f"{server.address}/docs")
    page.get_by_text("POST /v1/programs/router/predict:").click()
    assert "curl -s" in page.locator("details[open] pre").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
