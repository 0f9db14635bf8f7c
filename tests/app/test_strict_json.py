"""JSON that Python would take and a careful service does not."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.strict_json import NotJson, RefusedJson, loads

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_json_is_read_as_python_reads_it(value: Any) -> None:
    assert loads(json.dumps(value).encode()) == value


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.text('[]{}":,0123456789eE.+-naNIfityrul \\', max_size=40).map(str.encode)
)
def test_whatever_the_bytes_only_the_two_errors_come_out(data: bytes) -> None:
    for finite in (True, False):
        with contextlib.suppress(NotJson, RefusedJson):
            loads(data, finite=finite)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5_000,
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_json_is_said_so(data: bytes) -> None:
    with pytest.raises(NotJson):
        loads(data)


@pytest.mark.parametrize(
    "data", [b'{"p": 0.5, "p": 0.9}', b'[{"a": {"b": 1, "b": 1}}]', b'{"a": 1, "\\u0061": 1}']
)
def test_a_doubled_key_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedJson, match="twice"):
        loads(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_a_number_that_is_not_finite_is_refused_unless_asked_for(number: str) -> None:
    with pytest.raises(RefusedJson, match="finite"):
        loads(f"[{number}]".encode())
    (value,) = loads(f"[{number}]".encode(), finite=False)
    assert isinstance(value, float)
    assert value in (float("inf"), float("-inf")) or value != value
