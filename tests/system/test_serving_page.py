"""The page at `/`, in Debian's Chromium: a form from the signature, fields, bars, versions side by side, keyboard, phone.

Two programs: the router, whose labels are scored, and one that writes text, slowly and more than once, from inputs of all kinds. Their
models are scripted.

`SCREENSHOTS=docs/images python -m pytest tests/system/test_serving_page.py -m system` writes pictures of the documentation; not covered
is `serving-page.png`, which is of a real model.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, promote, save_version
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine
from dspy_toolkit.tracking import runs as tracking
from tests.serving.conftest import Running, fake, fakes_end, running, serving, wait_for  # noqa: F401

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium on this machine: apt install chromium."),
]
TICKETS = '''
from typing import Annotated, Literal

import dspy
from pydantic import Field

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project


class Write(dspy.Signature):
    """Answer a customer."""

    ticket: str = dspy.InputField(desc="What the customer wrote.")
    urgency: Annotated[int, Field(ge=1, le=5)] = dspy.InputField(desc="From 1, can wait, to 5.")
    tone: Literal["warm", "brief", "formal"] = dspy.InputField()
    known: bool = dspy.InputField(desc="Whether there was a ticket of theirs before.")
    orders: list[str] = dspy.InputField(desc="Numbers of their orders.")
    reply: str = dspy.OutputField()
    refund: bool = dspy.OutputField()


class Shorten(dspy.Signature):
    """Make a reply shorter."""

    reply: str = dspy.InputField()
    round: int = dspy.InputField()
    shorter: str = dspy.OutputField()


class Tickets(dspy.Module):
    """A reply that is made shorter twice."""

    def __init__(self):
        super().__init__()
        self.write = dspy.Predict(Write)
        self.shorten = dspy.Predict(Shorten)

    async def aforward(self, **inputs):
        written = await self.write.acall(**inputs)
        reply = written.reply
        for number in (1, 2):
            reply = (await self.shorten.acall(reply=reply, round=number)).shorter
        return dspy.Prediction(reply=reply, refund=written.refund)

    def forward(self, **inputs):
        return self.write(**inputs)


spec = DatasetSpec(source="rows.csv", inputs=("ticket", "urgency", "tone", "known", "orders"), outputs=("reply",))
tickets = Project(name="tickets", summary="Answer a customer", program=Tickets, metric=exact_match, dataset=spec)
'''
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


def test_a_program_is_tried_by_keyboard_and_two_versions_side_by_side(server: Running, browser: Any) -> None:
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


def test_it_fits_a_phone_and_says_what_is_wrong(server: Running, browser: Any) -> None:
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


def answered(request: Any) -> dict[str, Any]:
    asked = request.messages[-1].content
    if "## round ##" in asked:
        number = asked.partition("[[ ## round ## ]]\n")[2].split()[0]
        words = " ".join(f"word-{number}" for _ in range(12 // int(number)))
        return {"shorter": f"Version {number}: {words}."}
    return {"reply": "We are sorry that your parcel is late. " * 3, "refund": True}


@pytest.fixture
def tickets(home: Settings, tmp_path: Path) -> Iterator[tuple[Running, FakeEngine]]:
    path = tmp_path / "tickets.py"
    path.write_text(TICKETS)
    settings, engine = fake(home, answered, seconds_per_token=0.02)
    with running(serving(settings, programs=(f"{path}:tickets",))) as found:
        yield found, engine


WATCH = """() => {
  window.seen = [];
  const look = () => {
    const texts = {};
    for (const each of document.querySelectorAll("article dd")) texts[each.previousSibling.textContent] = each.textContent;
    window.seen.push(texts);
  };
  new MutationObserver(look).observe(document.getElementById("answers"), { childList: true, subtree: true, characterData: true });
}"""
"""Notes all texts of the outputs whenever one changes."""


def test_text_is_seen_growing_and_each_round_begins_anew(tickets: tuple[Running, FakeEngine], browser: Any) -> None:
    server, engine = tickets
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.goto(server.address)
    page.locator("#field-ticket").fill("Where is my parcel?")
    page.evaluate(WATCH)
    page.get_by_role("button", name="Ask").click()
    page.locator("article .rate:visible").wait_for()
    seen = page.evaluate("window.seen")
    written = list(dict.fromkeys(each["write: reply"] for each in seen if "write: reply" in each))
    assert len(written) > 10 and all(after.startswith(before) for before, after in pairwise(written))
    shorter = list(dict.fromkeys(each["shorten: shorter"] for each in seen if each.get("shorten: shorter")))
    second = next(number for number, text in enumerate(shorter) if "2" in text)
    assert second > 5 and len(shorter) - second > 3
    for part in (shorter[:second], shorter[second:]):
        assert all(after.startswith(before) for before, after in pairwise(part)), part
    assert not any("word-1" in text for text in shorter[second:]), "the second round does not go on from the first"
    outputs = page.locator("article .outputs dd").all_inner_texts()
    assert outputs == ["Version 2: " + " ".join(["word-2"] * 6) + ".", "true"]
    numbers = page.locator("article .numbers").inner_text()
    assert re.fullmatch(r"\d+ ms · \d+ \+ \d+ tokens · read in \d+ ms, written in \d+ ms", numbers), numbers
    assert engine.stats().finished == 3


def test_inputs_of_every_kind_by_keyboard_alone(tickets: tuple[Running, FakeEngine], browser: Any) -> None:
    server, engine = tickets
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.goto(server.address)
    page.locator("#field-orders").wait_for()
    page.locator("#program").focus()
    names = ["ticket", "urgency", "tone", "known", "orders"]
    order = [page.evaluate("document.activeElement.id")]
    for _ in range(len(names) + 3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["program", "beside", *(f"field-{name}" for name in names), "go", "prompt"]
    box = page.locator("#field-urgency")
    assert [box.get_attribute(name) for name in ("type", "min", "max", "step")] == ["number", "1", "5", "1"]
    assert page.locator("#field-tone option").all_inner_texts() == ["warm", "brief", "formal"]
    assert page.locator("#field-known option").all_inner_texts() == ["true", "false"]
    page.locator("#field-ticket").focus()
    page.keyboard.type("Where is my parcel?")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("9")
    page.keyboard.press("Control+Enter")
    assert page.locator("#field-urgency:invalid").count() == 1 and page.locator("article").count() == 0
    page.keyboard.press("Control+a")
    page.keyboard.type("4")
    page.keyboard.press("Tab")
    page.keyboard.type("form")
    page.keyboard.press("Tab")
    page.keyboard.type("fa")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type('["A-17", ')
    page.keyboard.press("Control+Enter")
    page.get_by_text("orders: that is no JSON").wait_for()
    page.keyboard.type('"B-2"]')
    page.keyboard.press("Control+Enter")
    page.locator("article .outputs dd", has_text="sorry").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Stopped.").wait_for()
    wait_for(lambda: engine.stats().active == engine.stats().queued == 0)
    assert engine.stats().cancelled == 1 and engine.stats().finished == 0
    asked = engine.requests[0].messages[-1].content
    given = {"urgency": "4", "tone": "formal", "known": "False", "orders": '["A-17", "B-2"]'}
    for name, value in given.items():
        assert f"[[ ## {name} ## ]]\n{value}\n" in f"{asked}\n", asked
    assert page.locator("#stop").is_disabled()


def test_what_the_documentation_shows(server: Running, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 720, "height": 700})
    page.goto(server.address)
    page.get_by_label("request").fill("Which rank should my adapter have for 400 notes?")
    page.get_by_role("button", name="Ask").click()
    page.locator("article .rate:visible").wait_for()
    widths = page.locator(".bar meter").evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
    assert len(widths) == 6 and max(widths) - min(widths) < 1, "of one length, so that they can be compared"
    picture(page, "serving-bars.png", tmp_path, whole=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "serving-phone.png", tmp_path, whole=True)
    page.set_viewport_size({"width": 800, "height": 1100})
    page.goto(f"{server.address}/docs")
    page.get_by_text("POST /v1/programs/router/predict:").click()
    page.locator("details[open] pre").first.wait_for()
    picture(page, "serving-docs.png", tmp_path)
