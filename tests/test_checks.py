"""Checks: whole numbers, names, numbers that float32 holds; every refusal is one line that names argument and value."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dplearn.checks import Flag, KeyOf, Names, Number, OneOf, Whole, is_number, is_whole, shown, whole

ANYTHING = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(), st.none(), st.lists(st.integers()), st.binary()
)


@given(ANYTHING, st.integers(-3, 3))
def test_whole_numbers_are_integers_that_are_no_booleans(value, least):
    integer = type(value) is int
    assert is_whole(value) is integer and is_whole(value, least) is (integer and value >= least)
    assert is_number(value) is (type(value) in (int, float))
    if integer and least <= value < 2**63:
        whole("count", value, least)
    else:
        expected = f"an integer of at least {least}( that int64 holds)?"
        with pytest.raises(ValueError, match=f"^count=.* is not valid, expected {expected}$"):
            whole("count", value, least)


@given(st.one_of(ANYTHING, st.floats(-1e-36, 1e-36), st.floats(1e37, 1e40), st.integers(10**37, 10**400)))
def test_a_number_passes_where_float32_keeps_it(value):
    """From the smallest normal number to the largest one of float32, by exact powers of two; 0 where it is allowed."""
    for positive in (True, False):
        good = type(value) in (int, float) and 2.0**-126 <= value <= (2 - 2.0**-23) * 2.0**127
        good = good or (type(value) in (int, float) and value == 0 and not positive)
        if good:
            Number(positive)("rate", value)
            assert math.isfinite(torch.tensor(float(value)).item())
        else:
            with pytest.raises(ValueError, match="^rate=.* is not valid, expected a "):
                Number(positive)("rate", value)


@given(ANYTHING)
def test_a_value_is_shown_in_one_short_line(value):
    text = shown(value)
    assert "\n" not in text and len(text) <= 80
    whole, (start, cut, end) = " ".join(repr(value).split()), (text[:39], text[39:42], text[42:])
    assert text == whole or (
        cut == "..." and whole.startswith(start) and whole.endswith(end) and len(text) == 80
    )


def test_a_tensor_is_shown_by_its_shape():
    assert shown(torch.zeros(2, 3)) == "a tensor of shape (2, 3)"


def test_a_whole_number_that_no_tensor_holds_is_refused():
    whole("length", 2**63 - 1)
    with pytest.raises(ValueError, match="^length=9223372036854775808 is not valid, .* that int64 holds$"):
        whole("length", 2**63)


def test_numbers_too_long_to_print_are_named():
    assert shown(10**5000) == "<a int too long to show>"
    with pytest.raises(ValueError, match="^rate=<a int too long to show> is not valid, expected a positive"):
        Number()("rate", 10**5000)


@pytest.mark.parametrize(
    "value", [numpy.zeros((30, 30)), numpy.array(["a", "b"]), torch.zeros(2), ["a"], {"a"}, {}, 3.5]
)
@pytest.mark.parametrize("check", [Whole(), OneOf(("a", None)), KeyOf({"a": 1}), Flag()], ids=str)
def test_arrays_and_containers_are_refused_by_name(check, value):
    with pytest.raises(ValueError, match="^option=.*, expected ") as found:
        check("option", value)
    assert check.expected in str(found.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, "a list of names"),
        ("ab", "a list of names"),
        ([], "a list of names"),
        (["a", 3], "a list of names"),
        (["a", ""], "a list of names"),
        (numpy.array(["a"]), "a list of names"),
        ({"a": 1}, "a list of names"),
        ({"a", "b"}, "a list of names: a set has no order"),
        (frozenset({"a"}), "a list of names: a set has no order"),
        (["a", "b", "a"], "names that differ"),
    ],
)
def test_names_are_a_list_of_strings_that_differ(value, expected):
    with pytest.raises(ValueError, match=f"^tasks=.* is not valid, expected {expected}$"):
        Names()("tasks", value)


def test_what_is_valid_passes():
    Names()("tasks", None), Names()("tasks", ["a", "b"]), Names()("tasks", ("a",))
    (
        OneOf(("a", None))("option", None),
        KeyOf({"a": 1})("option", "a"),
        Flag()("option", False),
        Whole(0)("option", 0),
    )
