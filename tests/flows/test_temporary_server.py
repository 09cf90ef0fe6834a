"""The server that a run by hand starts for itself: it answers the run, and nobody else."""

from __future__ import annotations

import os

import httpx
import pytest

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_nobody_else_is_answered() -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    address = str(get_current_settings().api.url)
    assert address.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=address) as stranger:
        assert stranger.post("/deployments/filter", json={}).status_code == 401
        assert stranger.post("/deployments/filter", json={}, auth=("dspy-toolkit", "guess")).status_code == 401
    with get_client(sync_client=True) as client:
        assert client.read_deployments() == []
    assert os.environ["PREFECT_API_AUTH_STRING"].startswith("dspy-toolkit:")
