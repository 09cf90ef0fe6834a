"""The documentation as a site: built strictly, with every page, searchable, and without anything from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = "mkdocs-material>=9.6,<10"
LOADED = re.compile(r"<(?:script|img|iframe|source|embed|object|link)\b[^>]*?(?:src|href|data)=\"([^\"]+)\"", re.I)
IN_STYLES = re.compile(r"url\(\s*['\"]?(https?:)?//|@import\s+['\"]?(https?:)?//")

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def mkdocs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command, in an environment of its own."""
    place = tmp_path_factory.mktemp("site environment")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", NEEDED]
    got = subprocess.run(pip, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"mkdocs cannot be had here: make `pip install '{NEEDED}'` work. {got.stderr.strip()[-200:]}")
    return str(place / "bin" / "mkdocs")


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(mkdocs: str, tmp_path: Path) -> None:
    built = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "site"
    for page in ROOT.glob("docs/**/*.md"):
        name = page.relative_to(ROOT / "docs").as_posix().replace("README.md", "index.md").removesuffix(".md")
        assert (site / f"{name}.html").is_file(), page
    assert (site / "repository" / "CONTRIBUTING.html").is_file()
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    loaded = {address for text in pages.values() for address in LOADED.findall(text)}
    assert loaded, "no page loads its own style"
    assert not [address for address in loaded if re.match(r"(https?:)?//", address)]
    for style in site.rglob("*.css"):
        assert not IN_STYLES.search(style.read_text(encoding="utf-8")), style
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert [entry["location"] for entry in index if "execute_with_fallback" in entry["text"]]
    # What leads out of docs/ leads to a page of the site, and what the site lacks is no link.
    assert 'href="repository/data/index.html"' in pages[site / "index.html"]
    assert "](../" not in "".join(pages.values())
