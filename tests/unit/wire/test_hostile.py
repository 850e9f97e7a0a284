"""Hostile input is refused with the right code, in one document, before anything is changed."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.entry import cni
from cni_plugin.wire import versions
from cni_plugin.wire.request import Request
from lab.waiting import PATIENTLY
from weft.types import Result

GOOD = b'{"cniVersion":"1.0.0","name":"n","type":"bridge"}'
ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0"}

STDIN: dict[str, tuple[int, bytes]] = {
    "empty": (6, b""),
    "spaces": (6, b" \n\t "),
    "a word": (6, b"hello"),
    "list": (6, b"[]"),
    "string": (6, b'"n"'),
    "number": (6, b"7"),
    "true": (6, b"true"),
    "null": (7, b"null"),
    "empty object": (7, b"{}"),
    "cut off": (6, GOOD[:-1]),
    "cut off in a string": (6, GOOD[:20]),
    "byte order mark": (6, b"\xef\xbb\xbf" + GOOD),
    "UTF-16": (6, GOOD.decode().encode("utf-16")),
    "UTF-16 without mark": (6, GOOD.decode().encode("utf-16-le")),
    "UTF-32": (6, GOOD.decode().encode("utf-32")),
    "Latin-1": (6, '{"name":"é"}'.encode("latin-1")),
    "overlong UTF-8": (6, b'{"name":"\xc0\xaf"}'),
    "encoded surrogate": (6, b'{"name":"\xed\xa0\x80"}'),
    "escaped surrogate": (6, b'{"name":"\\ud800"}'),
    "escaped surrogate in a key": (6, GOOD[:-1] + b',"\\udfff":1}'),
    "escaped surrogate deep inside": (6, GOOD[:-1] + b',"a":[{"b":["\\ud800x"]}]}'),
    "trailing letters": (6, GOOD + b"x"),
    "two documents": (6, GOOD + GOOD),
    "trailing zero byte": (6, GOOD + b"\0"),
    "leading zero byte": (6, b"\0" + GOOD),
    "zero bytes": (6, b"\0" * 100),
    "raw control character": (6, b'{"name":"a\nb"}'),
    "comment": (6, b"// hi\n" + GOOD),
    "single quotes": (6, b"{'name':'n'}"),
    "trailing comma": (6, b'{"name":"n",}'),
    "NaN": (6, GOOD[:-1] + b',"mtu":NaN}'),
    "Infinity": (6, GOOD[:-1] + b',"mtu":Infinity}'),
    "-Infinity": (6, GOOD[:-1] + b',"mtu":-Infinity}'),
    "a float past all bounds": (6, GOOD[:-1] + b',"mtu":1e999}'),
    "10,000 digits": (6, GOOD[:-1] + b',"mtu":' + b"9" * 10_000 + b"}"),
    "10,000 digits behind the point": (6, GOOD[:-1] + b',"mtu":0.' + b"9" * 10_000 + b"}"),
    "leading zeros": (6, GOOD[:-1] + b',"mtu":01}'),
    "lists 100 deep": (6, GOOD[:-1] + b',"a":' + b"[" * 100 + b"]" * 100 + b"}"),
    "lists 100,000 deep": (6, GOOD[:-1] + b',"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "lists without end": (6, b"[" * 1_000_000),
    "objects 9,000 deep": (6, b'{"a":' * 9_000 + b"1" + b"}" * 9_000),
    "longer than the limit": (6, GOOD[:-1] + b',"a":"' + b"x" * (1 << 20) + b'"}'),
    "more spaces than the limit": (6, GOOD + b" " * (1 << 20)),
    "same key twice": (7, b'{"name":"n","mtu":1,"mtu":1}'),
    "name twice": (7, b'{"name":"n","name":"m"}'),
    "name twice in other case": (7, b'{"name":"n","NAME":"m"}'),
    "same key twice deep inside": (7, b'{"name":"n","ipam":{"ranges":[[{"subnet":"a","subnet":"b"}]]}}'),
    "no name": (7, b'{"cniVersion":"1.0.0","type":"bridge"}'),
    "empty name": (7, b'{"name":""}'),
    "null name": (7, b'{"name":null}'),
    "name is a number": (6, b'{"name":5}'),
    "name is a list": (6, b'{"name":["n"]}'),
    "name climbs": (7, b'{"name":"../x"}'),
    "name with slash": (7, b'{"name":"a/b"}'),
    "name with dash": (7, b'{"name":"-rf"}'),
    "name with dot": (7, b'{"name":".hidden"}'),
    "name with space": (7, b'{"name":"a b"}'),
    "name with newline": (7, b'{"name":"a\\n"}'),
    "name with zero byte": (7, b'{"name":"a\\u0000b"}'),
    "name with escape": (7, b'{"name":"a\\u001b[2J"}'),
    "name with percent": (7, b'{"name":"n%d"}'),
    "name in another alphabet": (7, '{"name":"сеть"}'.encode()),
    "name of 300 characters": (7, b'{"name":"' + b"n" * 300 + b'"}'),
    "version unknown": (1, b'{"cniVersion":"9.0.0","name":"n"}'),
    "version unreadable": (1, b'{"cniVersion":"abc","name":"n"}'),
    "version short": (1, b'{"cniVersion":"1.0","name":"n"}'),
    "version with newline": (1, b'{"cniVersion":"1.0.0\\n","name":"n"}'),
    "version is a number": (6, b'{"cniVersion":1.0,"name":"n"}'),
    "version is an object": (6, b'{"cniVersion":{},"name":"n"}'),
    "type is a number": (7, b'{"name":"n","type":5}'),
    "ipam is a list": (7, b'{"name":"n","ipam":[]}'),
    "dns is a string": (7, b'{"name":"n","dns":"10.0.0.1"}'),
    "runtimeConfig is a number": (7, b'{"name":"n","runtimeConfig":1}'),
    "args is a string": (7, b'{"name":"n","args":"x"}'),
    "prevResult is a string": (7, b'{"name":"n","prevResult":"x"}'),
    "prevResult points outside": (
        7,
        b'{"cniVersion":"1.0.0","name":"n","prevResult":{"ips":[{"address":"10.1.0.5/24","interface":7}]}}',
    ),
}

ENVIRONMENT: dict[str, tuple[int, dict[str, str | None]]] = {
    "command unknown": (4, {"CNI_COMMAND": "FOO"}),
    "command in small letters": (4, {"CNI_COMMAND": "add"}),
    "command with space": (4, {"CNI_COMMAND": "ADD "}),
    "command with escape": (4, {"CNI_COMMAND": "\x1b[2J"}),
    "command in no UTF-8": (4, {"CNI_COMMAND": "\udcff"}),
    "no container": (4, {"CNI_CONTAINERID": None}),
    "empty container": (4, {"CNI_CONTAINERID": ""}),
    "container climbs": (4, {"CNI_CONTAINERID": "../../etc"}),
    "container with slash": (4, {"CNI_CONTAINERID": "a/b"}),
    "container with space": (4, {"CNI_CONTAINERID": "a b"}),
    "container with newline": (4, {"CNI_CONTAINERID": "a\n"}),
    "container with dash": (4, {"CNI_CONTAINERID": "-rf"}),
    "container with dot": (4, {"CNI_CONTAINERID": ".a"}),
    "container with quotes": (4, {"CNI_CONTAINERID": 'a"b'}),
    "container with percent": (4, {"CNI_CONTAINERID": "a%d"}),
    "container in no UTF-8": (4, {"CNI_CONTAINERID": "a\udcff"}),
    "container in another alphabet": (4, {"CNI_CONTAINERID": "контейнер"}),
    "container of 4,000 characters": (4, {"CNI_CONTAINERID": "a" * 4_000}),
    "container with carriage return": (4, {"CNI_CONTAINERID": "a\r"}),
    "no interface": (4, {"CNI_IFNAME": None}),
    "empty interface": (4, {"CNI_IFNAME": ""}),
    "interface of 16 bytes": (4, {"CNI_IFNAME": "e" * 16}),
    "interface dot": (4, {"CNI_IFNAME": "."}),
    "interface dots": (4, {"CNI_IFNAME": ".."}),
    "interface with slash": (4, {"CNI_IFNAME": "a/b"}),
    "interface with colon": (4, {"CNI_IFNAME": "eth0:1"}),
    "interface with space": (4, {"CNI_IFNAME": "eth 0"}),
    "interface with newline": (4, {"CNI_IFNAME": "eth0\n"}),
    "interface with percent": (4, {"CNI_IFNAME": "eth%d"}),
    "interface with escape": (4, {"CNI_IFNAME": "\x1b[2Jeth0"}),
    "interface with delete": (4, {"CNI_IFNAME": "eth\x7f"}),
    "interface with quote": (4, {"CNI_IFNAME": 'eth"0'}),
    "interface in no UTF-8": (4, {"CNI_IFNAME": "eth\udcff"}),
    "interface with accent": (4, {"CNI_IFNAME": "ethé"}),
    "no namespace": (4, {"CNI_NETNS": None}),
    "empty namespace": (4, {"CNI_NETNS": ""}),
    "relative namespace": (4, {"CNI_NETNS": "run/netns/a"}),
    "climbing namespace": (4, {"CNI_NETNS": "../a"}),
    "namespace with newline": (4, {"CNI_NETNS": "/run/netns/a\nb"}),
    "namespace with escape": (4, {"CNI_NETNS": "/run/\x1b[2J"}),
    "namespace in no UTF-8": (4, {"CNI_NETNS": "/run/netns/\udcff"}),
    "namespace of 5,000 characters": (4, {"CNI_NETNS": "/" + "a" * 5_000}),
    "arguments without =": (4, {"CNI_ARGS": "IP"}),
    "arguments with two =": (4, {"CNI_ARGS": "IP=a=b"}),
    "arguments with an empty pair": (4, {"CNI_ARGS": "IgnoreUnknown=1;;IP=a"}),
    "arguments unknown": (4, {"CNI_ARGS": "K8S_POD_NAME=web"}),
    "arguments with bad leniency": (4, {"CNI_ARGS": "IgnoreUnknown=maybe"}),
    "arguments with newline": (4, {"CNI_ARGS": "IgnoreUnknown=1;A=b\nc"}),
    "arguments in no UTF-8": (4, {"CNI_ARGS": "IgnoreUnknown=1;A=\udcff"}),
    "two commands": (4, {"CNI_COMMAND": "CHECK;ADD"}),
}


def refused(environ: dict[str, str], stdin: bytes) -> dict[str, object]:
    """Run a call that must fail with one document in its version, without calling the service."""
    asked: list[Request] = []
    status, answer = cni.run("bridge", environ, stdin, lambda request: asked.append(request))
    assert status == 1
    assert asked == []
    value = json.loads(answer)
    assert isinstance(value, dict)
    assert value["cniVersion"] in versions.ALL
    assert value["msg"].isprintable()
    assert len(answer) < 2_000
    return value


@pytest.mark.parametrize("case", STDIN)
def test_standard_input(case: str) -> None:
    code, stdin = STDIN[case]
    started = time.monotonic()
    assert refused(ENVIRON, stdin)["code"] == code
    assert time.monotonic() - started < PATIENTLY  # must be refused quickly


@pytest.mark.parametrize("case", ENVIRONMENT)
def test_environment(case: str) -> None:
    code, changes = ENVIRONMENT[case]
    environ = {key: value for key, value in (ENVIRON | changes).items() if value is not None}
    value = refused(environ, GOOD)
    assert value["code"] == code
    assert value["cniVersion"] == "1.0.0"


@pytest.mark.parametrize(
    ("command", "version", "code"),
    [("CHECK", "0.3.1", 1), ("GC", "1.0.0", 1), ("STATUS", "0.4.0", 1), ("CHECK", "abc", 1), ("GC", "", 1)],
)
def test_commands_newer_than_the_version_of_the_configuration(command: str, version: str, code: int) -> None:
    stdin = json.dumps({"cniVersion": version, "name": "n"}).encode()
    assert refused(ENVIRON | {"CNI_COMMAND": command}, stdin)["code"] == code


@pytest.mark.parametrize("case", [case for case, (code, _) in STDIN.items() if code == 6])
def test_del_needs_json(case: str) -> None:
    assert refused(ENVIRON | {"CNI_COMMAND": "DEL"}, STDIN[case][1])["code"] == 6


def one_document(status: int, answer: bytes) -> None:
    assert status in (0, 1)
    if status or answer:
        value = json.loads(answer)
        assert value["cniVersion"] in versions.ALL
        assert ("code" in value) == bool(status)
        assert value.get("code") != 999


COMMANDS = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "x"])
LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["10.1.0.5/24", "n", "::1"])
)
WORDS = """cniVersion name type ipam dns args cni runtimeConfig prevResult interfaces ips address interface gateway
    routes dst gw nameservers ip4 ip6 ip cni.dev/valid-attachments containerID ifname mtu"""
KEYS = st.text(max_size=3) | st.sampled_from(WORDS.split())
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=25)
OBJECT = st.dictionaries(KEYS, VALUE).map(
    lambda value: {"name": "n"} | value | {"cniVersion": value.get("cniVersion", "1.1.0")}
)


@given(OBJECT, COMMANDS)
def test_random_configurations_are_parsed_or_refused(value: dict[str, object], command: str) -> None:
    stdin = json.dumps(value).encode()
    one_document(*cni.run("bridge", ENVIRON | {"CNI_COMMAND": command}, stdin, lambda request: None))


@given(st.dictionaries(st.sampled_from([*ENVIRON, "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE"]), st.text()))
def test_random_environments_are_parsed_or_refused(environ: dict[str, str]) -> None:
    one_document(*cni.run("bridge", ENVIRON | environ, GOOD, lambda request: Result()))
