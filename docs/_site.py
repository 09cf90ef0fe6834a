"""Hooks of mkdocs (`mkdocs.yml`): the pages of this folder as a site, with those pages of the repository that they link to.

Covered: which pages there are, in the order of the table in index.md; links that leave this folder. A link to a page of the
repository leads to its copy in the site; one to another file of it becomes plain text, since the site has no such file.

Not covered: what the pages say (`build.py --check`).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
REPOSITORY = "repository"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "benchmarks/README.md")
"""Pages outside this folder that are pages of the site too."""
LINK = re.compile(r"(?<!`)(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2[ ]*$", re.M | re.S)


def on_config(config: Any) -> Any:
    """The order of the pages."""
    docs = ROOT / DOCS
    listed = re.findall(r"\]\(([a-z_]+\.md)\)", (docs / "index.md").read_text(encoding="utf-8"))
    others = sorted(path.name for path in docs.glob("*.md") if path.name not in (*listed, "index.md"))
    advice = sorted(path.name for path in (docs / "projects").glob("*.md") if path.name != "index.md")
    reference = sorted(path.name for path in (docs / "reference").glob("*.md") if path.name != "README.md")
    config.nav = [
        {"Begin": ["index.md"]},
        {"Guides": [*dict.fromkeys(listed), *others]},
        {"Advice": ["projects/index.md", *(f"projects/{name}" for name in advice)]},
        {"Reference": ["reference/README.md", *(f"reference/{name}" for name in reference)]},
        {"The repository": [f"{REPOSITORY}/{name}" for name in OUTSIDE]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository."""
    for name in OUTSIDE:
        files.append(File.generated(config, f"{REPOSITORY}/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links that hold in the site. What stands in a block of code is left as it is."""
    source = page.file.src_uri
    here = source.removeprefix(f"{REPOSITORY}/") if source.startswith(f"{REPOSITORY}/") else f"{DOCS}/{source}"

    def moved(found: re.Match[str]) -> str:
        target = found["target"]
        if not target or re.match(r"[a-z][a-z+.-]*:", target):
            return found[0]
        there = _page(posixpath.normpath(posixpath.join(posixpath.dirname(here), target)), files)
        if there is None:
            return found["text"]
        link = posixpath.relpath(there, posixpath.dirname(source) or ".")
        return f"{found['image']}[{found['text']}]({link}{found['anchor'] or ''})"

    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [LINK.sub(moved, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(moved, markdown[end:])])


def _page(target: str, files: Files) -> str | None:
    """The site's file for a path of the repository; None where it has none."""
    inside = target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else f"{REPOSITORY}/{target}"
    if target == DOCS:
        inside = "index.md"
    for name in (inside, f"{inside}/index.md", f"{inside}/README.md"):
        if files.get_file_from_path(name) is not None:
            return name
    return None
