"""Checks of fields: what passes, what does not, and what the error says."""

import math
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from attribution.checks import FieldError, listed, number, whole


class Owner(SimpleNamespace):
    """An object with a field ``a``."""


def owner(value: Any) -> Owner:
    return Owner(a=value)


@pytest.mark.parametrize("value", [0, 4, 1.0, 2.5, True, "2", "abc", None, [2], math.nan])
def test_no_whole_number_within_its_limits(value):
    """Claim: a number outside the limits, a fraction (even 1.0), a bool, text, None and a list are refused by class and field."""
    with pytest.raises(FieldError, match=rf"^Owner\.a={re.escape(str(value))}: must be a whole number, within 1\.\.3$"):
        whole(owner(value), "a", 1, 3)


@pytest.mark.parametrize("value", [-0.1, 1, math.inf, math.nan, True, "0.5", None, [0.5]])
def test_no_number_within_its_limits(value):
    """Claim: a number outside the limits, one that is not finite, and what is not a number are refused by class and field."""
    with pytest.raises(FieldError, match=rf"^Owner\.a={re.escape(str(value))}: must be a number, at least 0 and below 1$"):
        number(owner(value), "a", 0, below=1)


def test_what_is_within_the_limits_passes():
    """Claim: limits are allowed values, except ``below``; without an upper limit any finite number passes."""
    for value in (1, 2, 3):
        whole(owner(value), "a", 1, 3)
    whole(owner(10**9), "a", 1)
    for value in (0, 0.5, 1):
        number(owner(value), "a", 0, most=1)
    number(owner(1e300), "a", 0)
    with pytest.raises(FieldError, match=r"a=inf: must be a number, at least 0$"):
        number(owner(math.inf), "a", 0)
    with pytest.raises(FieldError, match=r"a=1\.5: must be a number, within 0\.\.1$"):
        number(owner(1.5), "a", 0, most=1)


@pytest.mark.parametrize("values", [5, 0.5, "12", [], (), None])
def test_no_list(values):
    """Claim: a single value, text and an empty list are refused."""
    with pytest.raises(FieldError, match="must be a list of at least one value"):
        listed(owner(values), "a", partial(whole, least=0))


def test_a_value_of_a_list_is_named_by_its_place():
    """Claim: the error names the place of the wrong value."""
    listed(owner((1, 2)), "a", partial(whole, least=1))
    with pytest.raises(FieldError, match=r"^Owner\.a\[1\]=2\.5: must be a whole number, at least 1$"):
        listed(owner([1, 2.5]), "a", partial(whole, least=1))
