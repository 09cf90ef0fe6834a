"""What is behind an error, which others have wrapped in theirs."""

from __future__ import annotations

import pytest

from dspy_toolkit.errors import causes


def wrapped() -> BaseException:
    """A TypeError raised from a KeyError, which was raised while a ValueError was being handled."""
    with pytest.raises(TypeError) as caught:
        try:
            try:
                raise ValueError("first")
            except ValueError:
                raise KeyError("second")  # noqa: B904
        except KeyError as error:
            raise TypeError("third") from error
    return caught.value


def test_the_error_itself_comes_first_and_its_origin_last() -> None:
    assert [type(error) for error in causes(wrapped())] == [TypeError, KeyError, ValueError]


def test_a_cause_goes_before_what_was_being_handled() -> None:
    error, named, handled = TypeError(), KeyError(), ValueError()
    error.__context__ = handled
    assert list(causes(error)) == [error, handled]
    error.__cause__ = named
    assert list(causes(error)) == [error, named]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_each_comes_once_in_a_circle(length: int) -> None:
    errors = [ValueError(number) for number in range(length)]
    for error, behind in zip(errors, [*errors[1:], errors[0]], strict=True):
        error.__cause__ = behind
    assert list(causes(errors[0])) == errors


def test_nothing_is_behind_nothing() -> None:
    assert list(causes(None)) == []
