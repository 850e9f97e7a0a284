"""What users of docker and podman type: ports, formats, filters, and the commands of their help texts."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess

import click
import pytest

from cni_plugin.cli.ports import mappings
from cni_plugin.cli.root import weft
from weft.errors import BadOption

LEFT_OUT = {
    "docker": {
        "create": {"aux-address", "config-from", "config-only", "ingress", "ipam-opt", "ipv4"},
        "ls": set(),
        "rm": set(),
        "prune": set(),
        "connect": {"alias", "driver-opt", "gw-priority", "ip6", "link", "link-local-ip"},
        "disconnect": set(),
    },
    "podman": {
        "create": {"dns", "interface-name", "ipam-opt", "route", "ignore"},
        "ls": {"sort"},
        "rm": {"time"},
        "exists": set(),
        "prune": set(),
        "connect": {"alias", "ip6", "mac-address"},
        "disconnect": set(),
    },
}
"""The options of each tool that weft does not have."""


def ports(text: str) -> list[tuple[str, int, int, str]]:
    return [
        (str(one.get("hostIP", "")), int(str(one["hostPort"])), int(str(one["containerPort"])), str(one["protocol"]))
        for one in mappings([text])
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8080:80", [("", 8080, 80, "tcp")]),
        ("8080:80/UDP", [("", 8080, 80, "udp")]),
        ("53/udp:53/udp", [("", 53, 53, "udp")]),
        ("127.0.0.1:8080:80/sctp", [("127.0.0.1", 8080, 80, "sctp")]),
        ("[::1]:8080:80", [("::1", 8080, 80, "tcp")]),
        ("8000-8002:80-82", [("", 8000, 80, "tcp"), ("", 8001, 81, "tcp"), ("", 8002, 82, "tcp")]),
    ],
)
def test_published_ports(text: str, found: list[tuple[str, int, int, str]]) -> None:
    assert ports(text) == found


@pytest.mark.parametrize("text", ["80", "127.0.0.1::80", "80-81", "[::1]::80/udp"])
def test_a_port_without_host_port_gets_a_free_one(text: str) -> None:
    for host, outer, inner, protocol in ports(text):
        assert 1024 <= outer <= 65535 and inner in (80, 81)
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as free:
            free.bind((host, outer))


def test_of_a_range_the_first_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = min(taken.getsockname()[1], 65534)
        [(_, outer, inner, _)] = ports(f"127.0.0.1:{port}-{port + 1}:80")
        assert (outer, inner) == (port + 1, 80)


@pytest.mark.parametrize(
    "text", ["", "a", "80:", "0:80", "80:70000", "1-2:3-5", "5-4:80", "1:2/icmp", "1/tcp:2/udp", "1-9999"]
)
def test_invalid_ports_are_refused(text: str) -> None:
    with pytest.raises(BadOption, match="invalid --publish"):
        mappings([text])


def test_formats_and_filters(run) -> None:
    for name in ("blue", "green"):
        run.good("network", "create", name, "--attachable", "--scope", "local")
    assert run.good("network", "ls", "--format", "{{.Name}}") == "blue\ngreen\n"
    assert run.good("network", "ls", "--format", "table {{.Name}}\\t{{ .Driver }}").splitlines() == [
        "NAME    DRIVER", "blue    bridge", "green   bridge",
    ]  # fmt: skip
    assert '"Name": "blue"' in run.good("network", "ls", "--format", "json").splitlines()[0]
    assert run.good("network", "ls", "-n", "--filter", "name=blue").count("\n") == 1
    assert run("network", "ls", "--format", "{{.Nmae}}").code == 2
    assert "no field .Nmae" in run("network", "ls", "--format", "{{.Nmae}}").err
    assert "are supported" in run("network", "ls", "--format", "{{range .}}").err
    assert "invalid --scope" in run("network", "create", "red", "--scope", "swarm").err
    run.container("c1")
    run.container("c2")
    run.good("attach", "blue", "c1")
    run.good("attach", "green", "c2")
    assert run.good("ps", "-a", "--format", "{{.Name}} {{.Network}}") == "c1 blue\nc2 green\n"
    assert run.good("ps", "--filter", "network=green", "-q") == "weft-c2\n"
    assert run.good("ps", "--filter", "name=c1", "--filter", "name=c2", "-n").count("\n") == 2
    assert "invalid --filter" in run("ps", "--filter", "color=blue").err


def test_a_network_is_named_by_its_id_or_a_prefix_of_it(run) -> None:
    for name in ("blue", "green"):
        run.good("network", "create", name)
    identity = run.good("network", "ls", "--filter", "name=blue", "-n", "--no-trunc").split()[0]
    short = run.good("network", "ls", "--filter", f"id={identity[:6]}", "-n").split()[0]
    assert short == identity[:12]
    for word in (identity, short, identity[:4]):
        assert run.good("network", "inspect", "-f", "{{.Name}}", word) == "blue\n"
    assert run("network", "inspect", identity[:3]).code == 3
    run.container("c1")
    run.good("attach", short, "c1")
    assert run("attach", short, "c1").code == 4  # the same network
    assert run.good("ps", "--network", short, "-q") == "weft-c1\n"
    assert run.good("check", short).startswith("ok")
    assert "Network:" in run.good("show", "c1", short)
    assert run.good("ipam", "ls", short).count("weft-c1") == 1
    assert run.good("detach", short, "c1") == "weft-c1/eth0\n"
    run.good("network", "rm", short)
    assert run.good("network", "ls", "-q") == "green\n"


def test_inspect_prints_fields(run) -> None:
    run.good("network", "create", "blue", "--subnet", "10.3.0.0/24", "--label", "a=b")
    for form, text in (
        ("{{.IPAM.Driver}}", "host-local"),
        ("{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}", "10.3.0.0/24 10.3.0.1"),
        ("{{json .Labels}} {{.Labels}}", '{"a": "b"} map[a:b]'),
        ("{{.Internal}}", "false"),
    ):
        assert run.good("network", "inspect", "-f", form, "blue") == f"{text}\n"
    assert "no field .Drivr" in run("network", "inspect", "-f", "{{.Drivr}}", "blue").err
    assert "are supported" in run("network", "inspect", "-f", "{{if .Name}}", "blue").err


def test_networks_are_filtered(run) -> None:
    run.good("network", "create", "blue", "--label", "a=b")
    run.good("network", "create", "green")
    run.container("c1")
    run.good("attach", "green", "c1")
    for text, names in (("dangling=true", "blue"), ("dangling=false", "green"), ("label=a=b", "blue"),
                        ("scope=local", "blue green"), ("type=builtin", "")):  # fmt: skip
        assert run.good("network", "ls", "-q", "--filter", text).split() == names.split()
    assert run("network", "ls", "--filter", "dangling=perhaps").code == 2
    assert run.good("network", "prune", "-f", "--filter", "label=c") == ""
    assert run.good("network", "prune", "-f", "--filter", "label=a") == "blue\n"


def test_connect_disconnect_exists_prune(run) -> None:
    for name in ("blue", "green", "red"):
        run.good("network", "create", name)
    run.container("c1")
    run.good("network", "connect", "blue", "c1")
    assert run.good("network", "connect", "green", "c1").startswith("weft-c1/eth1: ")
    assert run("network", "exists", "red").code == 0
    assert run.good("network", "prune", "-f") == "red\n"
    assert run("network", "exists", "red").code == 1
    assert run.good("network", "disconnect", "green", "c1") == "weft-c1/eth1\n"
    assert run("network", "disconnect", "green", "c1").code == 3
    assert run.good("network", "disconnect", "-f", "green", "c1") == ""
    assert run("network", "prune").code != 0  # asks, and nobody answers
    assert run.good("network", "ls", "-q") == "blue\ngreen\n"


def test_a_group_alone_prints_its_help(run) -> None:
    for group in ("network", "ipam", "services", "catalog"):
        said = run(group)
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith(f"Usage: weft {group} ") and "\\n" not in said.out


@pytest.mark.parametrize("tool", LEFT_OUT)
def test_every_option_of_the_real_tool_is_known_or_named_here(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here")
    group = weft.command_named("network")
    assert isinstance(group, click.Group)
    for name, left_out in LEFT_OUT[tool].items():
        text = subprocess.run([tool, "network", name, "--help"], capture_output=True, text=True, check=False).stdout
        theirs = set(re.findall(r"^ +(?:-\w, )?--([\w-]+)", text, re.MULTILINE)) - {"help"}
        own = {option.lstrip("-") for each in group.commands[name].params for option in each.opts}
        assert theirs - own <= left_out, f"{tool} network {name}"
