"""The CNI_* variables: what each command needs, the order of errors, and CNI_ARGS."""

from __future__ import annotations

import pytest

from cni_plugin.plan import modules
from cni_plugin.wire import environment
from cni_plugin.wire.request import Command
from weft.errors import EnvironmentProblem

WHOLE = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "default-t1",
    "CNI_NETNS": "/run/netns/netns-1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin::/usr/lib/cni",
}


def read(environ: dict[str, str], plugin: str) -> environment.Environment:
    return environment.read(environ, plugin, modules.reads_arguments)


def problem(plugin: str = "bridge", **changes: str | None) -> EnvironmentProblem:
    environ = {key: value for key, value in (WHOLE | changes).items() if value is not None}
    with pytest.raises(EnvironmentProblem) as caught:
        read(environ, plugin)
    assert caught.value.code == 4
    return caught.value


def test_an_environment_with_all_variables() -> None:
    said = read(WHOLE | {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web", "CNI_NETNS_OVERRIDE": "True"}, "x")
    assert said == environment.Environment(
        command=Command.ADD,
        container="default-t1",
        namespace="/run/netns/netns-1",
        interface="eth0",
        path=("/opt/cni/bin", "/usr/lib/cni"),
        arguments={"IgnoreUnknown": "1", "K8S_POD_NAME": "web"},
        override=True,
    )


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_add_and_check_need_all_three(command: str) -> None:
    found = problem(CNI_COMMAND=command, CNI_CONTAINERID=None, CNI_NETNS="", CNI_IFNAME=None)
    assert found.message == "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"


def test_del_needs_no_namespace() -> None:
    environ = {key: value for key, value in WHOLE.items() if key != "CNI_NETNS"} | {"CNI_COMMAND": "DEL"}
    assert read(environ, "bridge").namespace == ""
    assert "[CNI_IFNAME]" in problem(CNI_COMMAND="DEL", CNI_NETNS=None, CNI_IFNAME=None).message


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_gc_and_status_ignore_container_variables(command: str) -> None:
    said = read({"CNI_COMMAND": command, "CNI_CONTAINERID": "../x", "CNI_IFNAME": "a b"}, "bridge")
    assert (said.container, said.namespace, said.interface) == ("", "", "")


def test_the_path_may_be_absent() -> None:
    environ = {key: value for key, value in WHOLE.items() if key != "CNI_PATH"}
    assert read(environ, "bridge").path == ()


def test_a_bad_value_is_reported_before_a_missing_one() -> None:
    assert "CNI_IFNAME" in problem(CNI_CONTAINERID=None, CNI_IFNAME="a/b").message


@pytest.mark.parametrize(
    ("text", "override"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("yes", False), ("", False)]
)
def test_override(text: str, override: bool) -> None:
    assert read(WHOLE | {"CNI_NETNS_OVERRIDE": text}, "bridge").override is override


ARGUMENTS = [
    ("FOO=bar", 'ARGS: unknown args ["FOO=bar"]'),
    ("IgnoreUnknown=0;FOO=bar;A=b", 'ARGS: unknown args ["FOO=bar" "A=b"]'),
    ("IgnoreUnknown=false;ip=10.1.0.5", 'ARGS: unknown args ["ip=10.1.0.5"]'),
    ("FOO", 'ARGS: invalid pair "FOO"'),
    ("IgnoreUnknown=1;", 'ARGS: invalid pair ""'),
    ("IgnoreUnknown=1;A=b=c", 'ARGS: invalid pair "A=b=c"'),
    ("IgnoreUnknown=yes", "ARGS: IgnoreUnknown"),
    ("IgnoreUnknown=1;A=\x1b[2J", "must be printable"),
    ("IgnoreUnknown=1;A=\udcff", "must be printable"),
]


@pytest.mark.parametrize("plugin", ["weft", "bridge", "macvlan", "tap", "tuning", "host-local", "static"])
@pytest.mark.parametrize(("text", "message"), ARGUMENTS)
def test_invalid_cni_args_are_refused(plugin: str, text: str, message: str) -> None:
    for command in ("ADD", "CHECK"):
        assert message in problem(plugin, CNI_COMMAND=command, CNI_ARGS=text).message


@pytest.mark.parametrize("text", [text for text, _ in ARGUMENTS])
def test_del_and_plugins_without_arguments_ignore_invalid_cni_args(text: str) -> None:
    read(WHOLE | {"CNI_COMMAND": "DEL", "CNI_ARGS": text}, "bridge")
    read(WHOLE | {"CNI_ARGS": text}, "portmap")


@pytest.mark.parametrize("lenient", ["1", "true", "True", "TRUE"])
def test_unknown_arguments_pass_where_the_runtime_says_so(lenient: str) -> None:
    text = f"IgnoreUnknown={lenient};K8S_POD_UID=1;IP=10.1.0.5"
    said = read(WHOLE | {"CNI_ARGS": text}, "bridge")
    assert said.arguments == {"IgnoreUnknown": lenient, "K8S_POD_UID": "1", "IP": "10.1.0.5"}


def test_del_keeps_the_arguments_it_can_read() -> None:
    said = read(WHOLE | {"CNI_COMMAND": "DEL", "CNI_ARGS": "junk;IP=10.1.0.5;a=b=c"}, "bridge")
    assert said.arguments == {"IP": "10.1.0.5"}


def test_known_arguments_need_no_ignore_unknown() -> None:
    said = read(WHOLE | {"CNI_ARGS": "IP=10.1.0.5/24;MAC=02:00:00:00:00:01;GATEWAY=10.1.0.1"}, "weft")
    assert said.arguments["GATEWAY"] == "10.1.0.1"
