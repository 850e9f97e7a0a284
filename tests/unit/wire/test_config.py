"""Keys common to all plugins, the order of their errors, and how DEL and GC use them."""

from __future__ import annotations

import json
import time
from ipaddress import ip_address, ip_interface

import pytest

from cni_plugin.wire import config
from cni_plugin.wire.request import Command
from weft.errors import ConfigProblem, DecodeProblem, VersionProblem, WeftError
from weft.section import Section
from weft.types import Dns, Result, ResultAddress, ResultInterface

WHOLE = {
    "cniVersion": "1.1.0",
    "name": "blue",
    "type": "bridge",
    "bridge": "cni0",
    "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"},
    "runtimeConfig": {"ips": ["10.1.0.5"]},
    "args": {"cni": {"mac": "02:00:00:00:00:01"}},
    "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:2"]},
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
    },
}


def document(**changes: object) -> bytes:
    return json.dumps(WHOLE | changes).encode()


def test_a_whole_configuration() -> None:
    read = config.read(document(), Command.ADD)
    assert (read.version, read.name, read.type) == ("1.1.0", "blue", "bridge")
    assert read.keys.text("bridge") == "cni0"
    assert read.ipam.text("subnet") == "10.1.0.0/16"
    assert read.runtime.texts("ips") == ("10.1.0.5",)
    assert read.args_cni.text("mac") == "02:00:00:00:00:01"
    assert read.dns == Dns(("10.1.0.1",), "example.org", ("example.org",), ("ndots:2",))
    assert read.previous == Result(
        (ResultInterface("eth0", sandbox="/run/netns/a"),),
        (ResultAddress(ip_interface("10.1.0.5/16"), ip_address("10.1.0.1"), 0),),
    )
    assert read.valid is None


def test_keys_of_any_case_and_null() -> None:
    read = config.read(b'{"CNIVERSION":"0.4.0","Name":"n","RuntimeConfig":{"IPS":["::1"]},"dns":null}', Command.ADD)
    assert (read.version, read.name, read.runtime.texts("ips"), read.dns) == ("0.4.0", "n", ("::1",), None)


def test_the_smallest_configuration() -> None:
    read = config.read(b'{"name":"n"}', Command.ADD)
    assert (read.version, read.type, read.previous, bool(read.ipam)) == ("0.1.0", "", None, False)


@pytest.mark.parametrize(
    ("stdin", "kind", "message"),
    [
        (b"{", DecodeProblem, "not JSON"),
        (b"null", ConfigProblem, "missing network name"),
        (b'{"cniVersion":"9.9.9"}', ConfigProblem, "missing network name"),
        (b'{"cniVersion":"9.9.9","name":"../x"}', ConfigProblem, "network name"),
        (b'{"cniVersion":"9.9.9","name":"x","a":1,"a":2}', VersionProblem, "incompatible"),
        (b'{"cniVersion":"1.0.0","name":"x","dns":5,"a":1,"a":2}', ConfigProblem, "dns must be an object"),
    ],
)
def test_the_first_of_several_problems(stdin: bytes, kind: type[WeftError], message: str) -> None:
    with pytest.raises(kind, match=message):
        config.read(stdin, Command.ADD)


def test_all_errors_of_common_keys_are_reported_together() -> None:
    with pytest.raises(ConfigProblem) as caught:
        config.read(document(dns=5, args=[], prevResult="x", ipam=True, runtimeConfig=1), Command.ADD)
    for key in ("dns", "args", "prevResult", "ipam", "runtimeConfig"):
        assert key in caught.value.message


@pytest.mark.parametrize("command", [Command.ADD, Command.CHECK, Command.GC, Command.STATUS])
def test_a_key_given_twice_is_refused(command: Command) -> None:
    with pytest.raises(ConfigProblem, match='"mtu" is given twice'):
        config.read(b'{"cniVersion":"1.1.0","name":"n","ipam":{"mtu":1,"mtu":2}}', command)


def test_keys_that_differ_in_case_are_refused() -> None:
    with pytest.raises(ConfigProblem, match="Mtu is given twice"):
        config.read(b'{"cniVersion":"1.1.0","name":"n","mtu":1,"Mtu":2}', Command.ADD)


def test_del_accepts_what_add_refuses() -> None:
    broken = document(dns=5, args=[], prevResult={"ips": [{"address": "x"}]}, ipam=True)[:-1] + b',"mtu":1,"mtu":2}'
    with pytest.raises(ConfigProblem):
        config.read(broken, Command.ADD)
    read = config.read(broken, Command.DEL)
    assert read.name == "blue"
    assert read.previous == Result()
    assert any("mtu" in sentence for sentence in read.keys.problems.found)


@pytest.mark.parametrize("stdin", [b"", b"[]", b'{"cniVersion":"1.0.0"}', b'{"name":"a b"}', b'{"name":5}'])
def test_del_needs_json_and_a_name(stdin: bytes) -> None:
    with pytest.raises(WeftError):
        config.read(stdin, Command.DEL)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"mtu": "x"}, "correct the network configuration"),
        ({"runtimeConfig": {"mac": 5}}, "correct what the container runtime passes (runtimeConfig, CNI_ARGS)"),
        (
            {"mtu": "x", "runtimeConfig": {"mac": 5}},
            "correct the network configuration and what the container runtime passes (runtimeConfig, CNI_ARGS)",
        ),
    ],
    ids=["configuration", "runtime", "both"],
)
def test_the_hint_says_who_gave_the_value(values: dict[str, object], hint: str) -> None:
    keys = Section(values)
    keys.integer("mtu")
    keys.section("runtimeConfig").text("mac")
    with pytest.raises(ConfigProblem) as error:
        keys.problems.raise_any()
    assert error.value.hint == hint


def test_a_list_of_choices() -> None:
    keys = Section({"good": ["a", "b"], "empty": [], "bad": ["a", "c"]})
    found = {key: keys.texts(key, choices=("a", "b")) for key in ("good", "empty", "absent", "bad")}
    assert found == {"good": ("a", "b"), "empty": (), "absent": (), "bad": ()}
    assert [key in keys for key in ("empty", "absent")] == [True, False]
    assert keys.problems.found == ["bad [\"a\", \"c\"] must be a list of 'a', 'b'"]


def test_100000_errors_are_reported_quickly() -> None:
    key = "abcdefghijklmnop"
    cases = ("".join(c.upper() if n >> i & 1 else c for i, c in enumerate(key)) for n in range(40_000))
    stdin = ("{" + ",".join(f'"{each}":1' for each in cases) + ',"name":"n"}').encode()
    started = time.thread_time()
    with pytest.raises(ConfigProblem):
        config.read(stdin, Command.ADD)
    assert time.thread_time() - started < 20  # quadratic time would take minutes


def valid(**keys: object) -> tuple[tuple[str, str], ...] | None:
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "n"} | keys).encode()
    return config.read(stdin, Command.GC).valid


NEW, OLD = "cni.dev/valid-attachments", "cni.dev/attachments"
FIRST, SECOND = {"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}


def test_what_gc_keeps() -> None:
    assert valid() is None
    assert valid(**{NEW: []}) == ()
    assert valid(**{NEW: None}) == ()
    assert valid(**{NEW: [FIRST, SECOND]}) == (("a", "eth0"), ("b", "eth1"))
    assert valid(**{OLD: [FIRST]}) == (("a", "eth0"),)
    assert valid(**{NEW: [FIRST], OLD: [FIRST, SECOND]}) == (("a", "eth0"), ("b", "eth1"))
    assert valid(**{NEW: [], OLD: [SECOND]}) == (("b", "eth1"),)
    assert valid(**{NEW: [{"ContainerID": "a", "IfName": "eth0"}]}) == (("a", "eth0"),)


@pytest.mark.parametrize(
    "attachments", [5, "a", {}, [5], ["a"], [{}], [None], [{"containerID": "a"}], [{"containerID": 1, "ifname": "x"}]]
)
def test_gc_refuses_an_invalid_list_of_attachments(attachments: object) -> None:
    for key in (NEW, OLD):
        with pytest.raises(ConfigProblem, match=key):
            valid(**{key: attachments})


def test_other_commands_ignore_the_list_of_attachments() -> None:
    assert config.read(document(**{NEW: [FIRST]}), Command.ADD).valid is None
