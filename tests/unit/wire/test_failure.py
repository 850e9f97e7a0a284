"""Errors as JSON for the runtime."""

from __future__ import annotations

import json

import pytest

from cni_plugin.wire.failure import render_error
from weft.errors import Conflict, WeftError


def test_a_failure_with_a_hint() -> None:
    error = Conflict("10.1.0.5 belongs to web/eth0", hint="ask for another address")
    text = render_error(error, "0.4.0")
    assert json.loads(text) == {
        "cniVersion": "0.4.0",
        "code": 101,
        "msg": "10.1.0.5 belongs to web/eth0",
        "details": "ask for another address",
    }
    assert text.startswith(b'{\n    "cniVersion"')


def test_a_failure_without_one() -> None:
    assert json.loads(render_error(WeftError("no", code=11), "1.1.0")) == {
        "cniVersion": "1.1.0",
        "code": 11,
        "msg": "no",
    }


@pytest.mark.parametrize("version", ["", "9.9.9", "abc", "\x1b"])
def test_an_unsupported_version_becomes_the_newest(version: str) -> None:
    assert json.loads(render_error(WeftError("no"), version))["cniVersion"] == "1.1.0"


def test_any_text_becomes_plain_ascii() -> None:
    text = render_error(WeftError("\udcff\x1b[2J\u2028é\n"), "1.1.0")
    assert text.isascii()
    assert b"\x1b" not in text
    assert json.loads(text)["msg"] == "\udcff\x1b[2J\u2028é\n"
