"""Checks of settings: what passes, what does not, and what is said about it."""

import math
import re
from functools import partial

import pytest

from attribution.checks import listed, number, whole


@pytest.mark.parametrize("value", [0, 4, 1.0, 2.5, True, "2", "abc", None, [2], math.nan])
def test_no_whole_number_within_its_limits(value):
    """Claim: below or above its limits, a fraction (even 1.0), a truth value, a word, nothing and a list: refused by name."""
    with pytest.raises(ValueError, match=rf"^a\.setting={re.escape(str(value))}: must be a whole number, within 1\.\.3$"):
        whole("a.setting", value, 1, 3)


@pytest.mark.parametrize("value", [-0.1, 1, math.inf, math.nan, True, "0.5", None, [0.5]])
def test_no_number_within_its_limits(value):
    """Claim: below its least, at what it must be below, no number at all or not a finite one: refused by name."""
    with pytest.raises(ValueError, match=rf"^a\.setting={re.escape(str(value))}: must be a number, at least 0 and below 1$"):
        number("a.setting", value, 0, below=1)


def test_what_is_within_the_limits_passes():
    """Claim: limits belong to what is allowed, but for ``below``; without an upper limit any finite number passes."""
    for value in (1, 2, 3):
        whole("a", value, 1, 3)
    whole("a", 10**9, 1)
    for value in (0, 0.5, 1):
        number("a", value, 0, most=1)
    number("a", 1e300, 0)
    with pytest.raises(ValueError, match=r"a=inf: must be a number, at least 0$"):
        number("a", math.inf, 0)
    with pytest.raises(ValueError, match=r"a=1\.5: must be a number, within 0\.\.1$"):
        number("a", 1.5, 0, most=1)


@pytest.mark.parametrize("values", [5, 0.5, "12", [], (), None])
def test_no_list(values):
    """Claim: one value by itself, a word and an empty list are no lists of values."""
    with pytest.raises(ValueError, match="must be a list of at least one value"):
        listed("a", values, partial(whole, least=0))


def test_a_value_of_a_list_is_named_by_its_place():
    """Claim: what is wrong with which value."""
    listed("a", (1, 2), partial(whole, least=1))
    with pytest.raises(ValueError, match=r"^a\[1\]=2\.5: must be a whole number, at least 1$"):
        listed("a", [1, 2.5], partial(whole, least=1))
