"""A Prefect server that is gone ends a command in one line."""

from __future__ import annotations

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.terminal import ServerAway, server_answers
from tests.lm.openai_server import closed_address


def test_one_line_says_that_the_server_is_away_and_how_to_go_on() -> None:
    address = closed_address()
    said = "does not answer: .*refused.*run the same command to go on"
    # Where other tests have a server of their own, the environment is not asked again.
    with (
        temporary_settings({PREFECT_API_URL: address}),
        pytest.raises(ServerAway, match=said) as refused,
        server_answers(),
    ):
        httpx.get(address)
    assert address in str(refused.value)


def test_what_fails_for_another_reason_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="of its own"), server_answers():
        raise ValueError("of its own")
