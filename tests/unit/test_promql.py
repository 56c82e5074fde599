"""quote_label: foreign text in PromQL stays a string."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator import quote_label

STRING = re.compile(r'"(?:[^"\\\n]|\\["\\n])*"')
"""A double-quoted PromQL string with no other escapes than ours."""


@given(st.text() | st.text('"\\\nn{}='))
def test_a_quoted_label_is_one_string_that_reads_back_as_the_value(value: str) -> None:
    quoted = quote_label(value)
    assert STRING.fullmatch(quoted)
    read = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), quoted[1:-1])
    assert read == value


@pytest.mark.parametrize(
    ("value", "quoted"),
    [("orders", '"orders"'), ('"} or vector(1) #', '"\\"} or vector(1) #"'), ("a\\", '"a\\\\"')],
)
def test_quotes_cannot_be_closed_from_inside(value: str, quoted: str) -> None:
    assert quote_label(value) == quoted
