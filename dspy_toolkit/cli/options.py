"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(negative="", show_default=False)]
"""Print JSON, for scripts."""
