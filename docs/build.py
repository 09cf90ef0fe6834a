"""Make docs/reference/, SKILL.md and llms.txt from the code, and check the pages written by hand.

    python docs/build.py            write them
    python docs/build.py --check    change nothing; exit code 1 when a page is stale, a link is dead or an example is broken
    python docs/build.py … --json   the same, and say it as JSON: ok, changed, stale, problems

`dspy-toolkit docs build` and `dspy-toolkit docs check` run this.

The same code gives the same bytes. Pages of docs/reference/ that nothing makes any more are removed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _agents import doors
from _checks import problems
from _cli import cli_page
from _modules import errors_page, module_pages
from _routes import routes_page
from _settings import settings_page
from _subjects import flows_page, metrics_page, projects_page

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path("docs/reference")
MADE = "<!-- Made by docs/build.py: change the code, not this page. -->\n\n"


def pages(root: Path) -> dict[str, str]:
    """File name in docs/reference/ → its text."""
    library = root / "dspy_toolkit"
    made = {
        "settings.md": settings_page(library / "settings.py"),
        "cli.md": cli_page(),
        "errors.md": errors_page(library / "errors.py"),
        "flows.md": flows_page(root),
        "metrics.md": metrics_page(root),
        "projects.md": projects_page(root),
        "routes.md": routes_page(),
        **module_pages(library),
    }
    return {name: f"{MADE}{text.strip()}\n" for name, text in {**made, "README.md": _index(made)}.items()}


def _index(made: dict[str, str]) -> str:
    lines = [
        "# Reference",
        "",
        "What every setting, command, error and public name is. The guides are one folder up.",
        "",
    ]
    for name, text in sorted(made.items()):
        title = next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")
        lines.append(f"- [{title}]({name})")
    return "\n".join(lines)


def stale(root: Path, made: dict[str, str]) -> list[Path]:
    """Pages that are missing, differ from what the code gives, or are not made any more."""
    folder = root / REFERENCE
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return [REFERENCE / name for name in sorted({*there, *made}) if there.get(name) != made.get(name)]


def write(root: Path, made: dict[str, str]) -> list[Path]:
    """Bring docs/reference/ up to date; what changed."""
    changed = stale(root, made)
    for path in changed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.name in made:
            (root / path).write_text(made[path.name], encoding="utf-8")
        else:
            (root / path).unlink()
    return changed


def stale_doors(root: Path) -> dict[str, str]:
    """Of SKILL.md and llms.txt, those that differ from what the code and the pages give: name → what it should be."""
    made = doors(root)
    there = {name: root / name for name in made}
    return {
        name: text
        for name, text in made.items()
        if not there[name].is_file() or there[name].read_text(encoding="utf-8") != text
    }


def main(arguments: list[str]) -> int:
    """Run; the exit code."""
    if unknown := [argument for argument in arguments if argument not in ("--check", "--json")]:
        print(f"Unknown argument {unknown[0]!r}.\n\n{__doc__}", file=sys.stderr)
        return 2
    made = pages(ROOT)
    changed = [] if "--check" in arguments else mend(ROOT, made)
    left, found = [*stale(ROOT, made), *map(Path, stale_doors(ROOT))], problems(ROOT)
    ok = not (left or found)
    if "--json" in arguments:
        paths = {"changed": [path.as_posix() for path in changed], "stale": [path.as_posix() for path in left]}
        print(json.dumps({"ok": ok, **paths, "problems": found}, indent=2))
        return 0 if ok else 1
    if "--check" not in arguments:
        print("\n".join(f"wrote {path}" for path in changed) or "Everything is up to date.")
    said = [f"{path} is stale." for path in left]
    if left:
        said.append("Run `python docs/build.py` and commit what it writes.")
    print("".join(f"{line}\n" for line in [*said, *found]), file=sys.stderr, end="")
    return 0 if ok else 1


def mend(root: Path, made: dict[str, str]) -> list[Path]:
    """Write what is stale; what changed."""
    changed = write(root, made)
    # After the reference: llms.txt lists its pages.
    for name, text in stale_doors(root).items():
        (root / name).write_text(text, encoding="utf-8")
        changed.append(Path(name))
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
