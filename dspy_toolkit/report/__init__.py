"""One HTML page about one run: what changed, what it did to the answers, what it cost, and the verdict.

    values → words, prompts, answers, curves, costs → gathering → charts and page.html.j2 → one HTML text

`gather` collects plain values (`Page`); the template shows them and computes nothing. The page is self-contained: its
styles and charts are inside, it loads nothing and runs no script, so that it can be sent as one file and read in ten
years. Inputs and answers are untrusted text, and escaped.

It shows rows of the data in clear, of validation and in demonstrations; sealed ones only where the settings ask for it. Whoever
changes a prompt after reading those has tuned on them.

Not covered: when it is made and under which name it is kept (`dspy_toolkit.pipeline.record`), and comparing several
runs (MLflow's own pages).
"""

from __future__ import annotations

from dspy_toolkit.report.gathering import Page, gather
from dspy_toolkit.report.rendering import render

__all__ = ["Page", "gather", "render"]
