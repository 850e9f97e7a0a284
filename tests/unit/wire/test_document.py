"""Reading standard input, and parsing it as one JSON object."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.wire import channel, document
from lab.waiting import PATIENTLY
from weft.errors import DecodeProblem, WeftError

LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(st.dictionaries(st.text(), VALUE))
def test_documents_round_trip(value: dict[str, object]) -> None:
    assert document.decode(json.dumps(value).encode()) == (value, ())
    assert document.decode(json.dumps(value, ensure_ascii=False).encode()) == (value, ())


@given(st.binary(max_size=200))
def test_random_bytes_are_an_object_or_an_error(data: bytes) -> None:
    try:
        value, _ = document.decode(data)
    except DecodeProblem as problem:
        assert problem.code == 6
    else:
        assert value is None or isinstance(value, dict)


def test_a_key_given_twice_is_named_at_every_depth() -> None:
    value, twice = document.decode(b'{"a":1,"b":{"c":1,"c":2,"d":3},"a":4}')
    assert value == {"a": 4, "b": {"c": 2, "d": 3}}
    assert sorted(twice) == ["a", "c"]


def test_many_duplicate_keys_are_found_quickly() -> None:
    pairs = ",".join(f'"k{number}":1,"k{number}":2' for number in range(30_000))
    started = time.thread_time()
    _, twice = document.decode(f"{{{pairs}}}".encode())
    assert len(twice) == 30_000
    assert time.thread_time() - started < 10  # quadratic time would take minutes


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_nesting_has_a_limit() -> None:
    assert document.decode(nested(document.DEEPEST))[0] is not None
    for depth in (document.DEEPEST + 1, 5_000, 200_000):
        with pytest.raises(DecodeProblem, match=f"deeper than {document.DEEPEST} levels"):
            document.decode(nested(depth))


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    assert document.decode(b'{"a":"' + b"[" * 500 + b'"}')[0] == {"a": "[" * 500}


def test_lone_surrogates_are_refused() -> None:
    assert document.decode(b'{"a":"\\ud83d\\ude00"}')[0] == {"a": "\U0001f600"}
    for text in (b'{"a":"\\ud83d"}', b'{"\\ude00":1}', b'{"a":[["\\udc80"]]}'):
        with pytest.raises(DecodeProblem, match="surrogate"):
            document.decode(text)


def test_the_limit_is_named() -> None:
    fits = b'{"a":"' + b"x" * (channel.LIMIT - 8) + b'"}'
    assert len(fits) == channel.LIMIT
    document.decode(fits)
    with pytest.raises(DecodeProblem, match="1048576 bytes"):
        document.decode(fits + b" ")


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        (b'{"cniVersion":"1.0.0"}', "1.0.0"),
        (b'{"CniVersion":"1.0.0"}', "1.0.0"),
        (b"{}", "0.1.0"),
        (b"null", "0.1.0"),
        (b'{"cniVersion":""}', "0.1.0"),
        (b'{"cniVersion":7}', ""),
        (b"[]", ""),
        (b"", ""),
    ],
)
def test_the_version_of_a_document(stdin: bytes, expected: str) -> None:
    assert document.version(stdin) == expected


def pipe_with(data: bytes, *, close: bool = True) -> tuple[int, int]:
    reading, writing = os.pipe()
    os.write(writing, data)
    if close:
        os.close(writing)
    return reading, writing


def test_reading_ends_at_the_end_of_file() -> None:
    reading, _ = pipe_with(b'{"a":1}')
    try:
        assert channel.read(reading) == b'{"a":1}'
    finally:
        os.close(reading)


def test_reading_with_a_timeout() -> None:
    reading, writing = pipe_with(b'{"a":1}', close=False)
    try:
        started = time.monotonic()
        assert channel.read(reading, patience=0.05) == b'{"a":1}'
        assert 0.04 < time.monotonic() - started < PATIENTLY
    finally:
        os.close(reading)
        os.close(writing)


def test_reading_waits_for_a_non_blocking_pipe() -> None:
    reading, writing = pipe_with(b"{", close=False)
    os.set_blocking(reading, False)

    def finish() -> None:
        time.sleep(0.05)
        os.write(writing, b"}")
        os.close(writing)

    thread = threading.Thread(target=finish)
    thread.start()
    try:
        assert channel.read(reading) == b"{}"
    finally:
        thread.join()
        os.close(reading)


def test_reading_stops_at_the_limit() -> None:
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    try:
        started = time.monotonic()
        with pytest.raises(DecodeProblem, match="1048576 bytes"):
            channel.read(descriptor)
        assert time.monotonic() - started < PATIENTLY
    finally:
        os.close(descriptor)


def test_a_terminal_is_not_read() -> None:
    controlling, terminal = os.openpty()
    try:
        with pytest.raises(WeftError, match="terminal") as caught:
            channel.read(terminal)
        assert caught.value.code == 5
    finally:
        os.close(controlling)
        os.close(terminal)


def test_a_failed_read_is_an_io_error() -> None:
    folder = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(WeftError, match="cannot read standard input") as caught:
            channel.read(folder)
        assert caught.value.code == 5
    finally:
        os.close(folder)
