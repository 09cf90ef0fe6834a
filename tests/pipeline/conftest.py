"""The toy program of the optimizers' tests, for the steps that run one."""

from __future__ import annotations

from tests.optimizers.conftest import toy

__all__ = ["toy"]
