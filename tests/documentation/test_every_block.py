"""Every shell block of the pages can be read by a shell, and is run by a test (tests/system/test_shell_blocks.py) or listed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dspy_toolkit.scaffold import TEMPLATES
from tests.documentation.shell import (
    NOT_RUN,
    ROOT,
    SHELLS,
    TEMPLATES_NOT_RUN,
    pages,
    sections,
    template_blocks,
    to_run,
)


def test_every_section_with_a_block_is_run_or_listed_with_its_reason() -> None:
    found = {section.key for section in sections()}
    assert found >= NOT_RUN.keys(), "listed, but no such section is left"
    assert found == NOT_RUN.keys() | {section.key for section in to_run()}
    assert len(found) == len(sections()), "two sections of one page have the same heading"
    for reason, stands_for_it in NOT_RUN.values():
        assert reason.endswith(".")
        assert (ROOT / stands_for_it).is_file(), stands_for_it


def test_no_block_is_missed() -> None:
    written = sum(
        line.strip().startswith(tuple(f"```{kind}" for kind in SHELLS))
        for page in pages(ROOT)
        for line in page.read_text(encoding="utf-8").splitlines()
    )
    assert written == sum(len(section.shell) for section in sections()) > 0


def test_every_templates_readme_is_run_or_listed_with_its_reason() -> None:
    assert set(TEMPLATES) > set(TEMPLATES_NOT_RUN)
    for template in TEMPLATES:
        (block,) = template_blocks(template, "fresh")
        assert "-m pytest fresh " in block and "{{" not in block
    for reason, stands_for_it in TEMPLATES_NOT_RUN.values():
        assert reason.endswith(".")
        assert (ROOT / stands_for_it).is_file(), stands_for_it


def test_every_block_is_good_shell() -> None:
    blocks = [(str(section), block) for section in sections() for block in section.shell]
    blocks += [(template, block) for template in TEMPLATES for block in template_blocks(template, "fresh")]
    for where, block in blocks:
        read = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert read.returncode == 0, f"{where}\n{block}\n{read.stderr}"


def test_blocks_are_found_by_heading_and_in_lists(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "CONTRIBUTING.md").write_text("# None\n")
    (tmp_path / "README.md").write_text(
        "# A\n\n```sh\n# no heading\nls\n```\n\n## B\n\n- in a list\n\n  ```bash\n  for i in 1; do\n    ls\n  done\n  ```\n\n"
        '```toml\nname = "x"\n```\n\n```text\n$ no\n```\n'
    )
    first, second = sections(tmp_path)
    assert (first.key, first.shell) == (("README.md", "A"), ["# no heading\nls"])
    assert (second.key, second.shell) == (("README.md", "B"), ["for i in 1; do\n  ls\ndone"])
    assert second.toml == ['name = "x"']
