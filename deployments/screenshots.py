"""Pictures of the pages that `make up` serves, for docs/monitoring.md, in headless Chromium.

    python -m deployments.screenshots docs/images

The pages are the real ones, of what has run here; `make up` first, and something to look at. Nothing is fetched from elsewhere:
what a page asks of other hosts is refused.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployments.bootstrap import places_of
from deployments.places import HOST, Places
from dspy_toolkit.cli.boundary import boundary
from dspy_toolkit.errors import SettingsError

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1200, "height": 760}
SETTLE_SECONDS = 4.0
SHOWN = {
    "runs": "optimize router",
    "run": "optimize router",
    "artifact": "candidate, val",
    "deployments": "nightly-router",
    "mlflow": "optimize router",
}
"""What is seen when a page has got what it asked for."""
PATIENCE_SECONDS = 120.0


def take(places: Places, folder: Path) -> list[Path]:
    """Take all pictures; the files.

    Raises:
        SettingsError: there is no Chromium.
    """
    from playwright.sync_api import TimeoutError as NotThere
    from playwright.sync_api import sync_playwright

    browser_path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if browser_path is None:
        raise SettingsError("There is no Chromium on the path. Debian: apt-get install chromium.")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        context = browser.new_context(viewport=SIZE, color_scheme="light")
        context.route("**/*", _from_here)
        context.add_init_script(f"localStorage.setItem('prefect-password', btoa({places.password!r}))")
        page = context.new_page()
        for name, address in addresses(places).items():
            page.goto(address, timeout=PATIENCE_SECONDS * 1000, wait_until="domcontentloaded")
            # The pages of Prefect and MLflow are programs of their own, which ask for what they show.
            with suppress(NotThere):
                page.get_by_text(SHOWN.get(name, "")).first.wait_for(timeout=PATIENCE_SECONDS * 1000)
            page.wait_for_timeout(SETTLE_SECONDS * 1000)
            made.append(folder / f"{name}.png")
            page.screenshot(path=made[-1])
            _make_small(made[-1])
        browser.close()
    return made


def _make_small(path: Path) -> None:
    """Few colours are enough for a page, and make a file of a fraction of the size."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(96)
    small.save(path, optimize=True)


def addresses(places: Places) -> dict[str, str]:
    """Name → page: the newest run that completed, its artifacts, MLflow's runs, and ours."""
    from deployments.registering import client

    found = {"runs": f"{places.server}/runs"}
    with client() as prefect:
        filters = {"state": {"type": {"any_": ["COMPLETED"]}}}
        asked: dict[str, Any] = {
            "flow_runs": filters,
            "flows": {"name": {"any_": ["optimize-program"]}},
            "sort": "END_TIME_DESC",
            "limit": 1,
        }
        runs = prefect.request("POST", "/flow_runs/filter", json=asked).json()
        deployments = prefect.request("POST", "/deployments/count", json={}).json()
        if runs:
            found["run"] = f"{places.server}/runs/flow-run/{runs[0]['id']}"
            wanted = {
                "artifacts": {"flow_run_id": {"any_": [runs[0]["id"]]}, "key": {"like_": "%comparison%"}},
                "limit": 1,
            }
            for artifact in prefect.request("POST", "/artifacts/filter", json=wanted).json():
                found["artifact"] = f"{places.server}/artifacts/artifact/{artifact['id']}"
        if deployments:
            found["deployments"] = f"{places.server}/deployments"
    from dspy_toolkit.tracking.mlflow_client import connect, experiment_id
    from dspy_toolkit.tracking.nights import projects_with_nights

    for project in projects_with_nights(places.settings)[:1]:
        found["over-time"] = f"{places.pages}/projects/{project}"
        number = experiment_id(connect(places.settings), places.settings)
        found["mlflow"] = f"{places.mlflow}/#/experiments/{number}/runs"
    return found


def _from_here(route: Any) -> None:
    """Pages of this machine, and nothing else."""
    if urlsplit(route.request.url).hostname in (HOST, "localhost"):
        route.continue_()
    else:
        route.abort()


def main() -> None:
    """Take the pictures."""
    options = argparse.ArgumentParser(prog="python -m deployments.screenshots")
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder
    with boundary():
        for path in take(places_of({}), folder):
            print(f"{path} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
