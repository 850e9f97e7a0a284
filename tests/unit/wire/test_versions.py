"""Versions that each plugin supports, and the replies to VERSION and to a call without a command."""

from __future__ import annotations

import json
import re

import pytest

from cni_plugin.wire import probe, versions
from weft import __version__
from weft.errors import VersionProblem

SEMVER = re.compile(r"v(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


@pytest.mark.parametrize(
    ("plugin", "first"), [("weft", "0.1.0"), ("bridge", "0.1.0"), ("bandwidth", "0.3.0"), ("vrf", "0.3.1")]
)
def test_a_plugin_speaks_all_from_its_first_version_on(plugin: str, first: str) -> None:
    known = versions.supported(plugin)
    assert known[0] == first
    assert known[-1] == "1.1.0"


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        (b"", "1.1.0"),
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{ "CNIVersion" :\n "1.0.0" }', "1.0.0"),
        (b'{"cniVersion":"9.0.0"}', "1.1.0"),
        (b'{"cniVersion":4}', "1.1.0"),
        (b'{"cniVersion":', "1.1.0"),
        (b'{"cniVersion":"\xff"}', "1.1.0"),
        (b'{"prevResult":{"cniVersion":"0.3.1"},"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"prevResult":{"cniVersion":"0.3.1"},"cniVersion":"0.4.0"', "1.1.0"),
        (b"not JSON", "1.1.0"),
    ],
)
def test_version_replies_in_the_version_of_the_request(stdin: bytes, expected: str) -> None:
    answer = probe.answer("bridge", stdin)
    assert answer.endswith(b"}\n")
    assert answer.count(b"\n") == 1
    assert json.loads(answer) == {"cniVersion": expected, "supportedVersions": list(versions.ALL)}


def test_version_does_not_reply_in_an_unsupported_version() -> None:
    answer = json.loads(probe.answer("firewall", b'{"cniVersion":"0.3.1"}'))
    assert answer == {"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}


@pytest.mark.parametrize("plugin", ["bridge", "firewall", "host-local"])
def test_about_names_the_reference_release_that_weft_matches(plugin: str) -> None:
    first, second, end = versions.about(plugin).split("\n")
    found = SEMVER.fullmatch(first.removeprefix(f"CNI {plugin} plugin "))
    assert found is not None
    assert tuple(int(part) for part in found.groups()[:3]) >= (1, 9, 1)
    assert found.group(4) is None  # a pre-release compares as older
    assert f"weft.{__version__}" in first
    assert second == "CNI protocol versions supported: " + ", ".join(versions.supported(plugin))
    assert end == ""


def test_about_weft_names_its_own_release() -> None:
    assert versions.about("weft").startswith(f"CNI weft plugin v{__version__}\n")


@pytest.mark.parametrize(
    ("version", "command", "plugin", "message", "detail"),
    [
        ("0.3.1", "CHECK", "bridge", "config version does not allow CHECK", '"0.4.0"'),
        ("1.0.0", "GC", "bridge", "config version does not allow GC", '"1.1.0"'),
        ("0.4.0", "STATUS", "bridge", "config version does not allow STATUS", '"1.1.0"'),
        ("2.0.0", "ADD", "bridge", "incompatible CNI versions", 'config is "2.0.0", plugin supports ["0.1.0" "0.2.0"'),
        ("abc", "CHECK", "bridge", "incompatible CNI versions", 'config is "abc"'),
        ("0.3.0", "DEL", "vrf", "incompatible CNI versions", 'plugin supports ["0.3.1" "0.4.0"'),
        ("1.0", "ADD", "weft", "incompatible CNI versions", 'config is "1.0"'),
        ("\x1b[2J", "ADD", "weft", "incompatible CNI versions", 'config is "unreadable"'),
    ],
)
def test_commands_that_a_version_does_not_allow(
    version: str, command: str, plugin: str, message: str, detail: str
) -> None:
    with pytest.raises(VersionProblem) as caught:
        versions.require(version, command, plugin)
    assert caught.value.code == 1
    assert caught.value.message == message
    assert detail in caught.value.hint


@pytest.mark.parametrize(("version", "command"), [("0.1.0", "DEL"), ("0.4.0", "CHECK"), ("1.1.0", "GC")])
def test_commands_that_a_version_allows(version: str, command: str) -> None:
    versions.require(version, command, "weft")
