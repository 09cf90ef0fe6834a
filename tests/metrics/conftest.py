"""Lets the tests of this folder import what they have in common (`cases`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
