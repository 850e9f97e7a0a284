"""What users of docker and podman type: ports, formats, filters, and the commands of their help texts."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess

import click
import pytest

from cni_plugin.cli.ports import mappings
from cni_plugin.cli.root import weft
from weft.errors import BadOption

LEFT_OUT: dict[str, dict[str, set[str]]] = {
    "docker": {
        "create": {"config-from", "config-only", "ingress", "ipv4"},
        "ls": set(),
        "rm": set(),
        "prune": set(),
        "connect": {"driver-opt", "gw-priority", "link", "link-local-ip"},
        "disconnect": set(),
        "inspect": set(),
    },
    "podman": {
        "create": set(),
        "ls": {"sort"},
        "rm": {"time"},
        "exists": set(),
        "prune": set(),
        "connect": set(),
        "disconnect": set(),
        "inspect": set(),
        "reload": {"latest"},
    },
}
PODMAN_5 = {
    "create": {"disable-dns", "dns", "driver", "gateway", "ignore", "interface-name", "internal", "ip-range",
               "ipam-driver", "ipv6", "label", "opt", "route", "subnet"},
    "connect": {"alias", "ip", "ip6", "mac-address"},
    "update": {"dns-add", "dns-drop"},
}  # fmt: skip
"""The options of podman 5, as podman-network-create(1) and its neighbours have them; Debian 12 has podman 4."""


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
        port = taken.getsockname()[1]
        last = min(port + 20, 65535)  # the next ones may be those of other programs, but not so many
        [(_, outer, inner, _)] = ports(f"127.0.0.1:{port}-{last}:80")
        assert port < outer <= last and inner == 80


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


def test_a_network_is_created_with_all_that_docker_and_podman_take(run) -> None:
    run.good(
        "network", "create", "blue", "--subnet", "10.3.0.0/24", "--aux-address", "r=10.3.0.2", "--dns", "192.0.2.53",
        "--route", "10.50.0.0/16,10.3.0.9,100", "--interface-name", "br9", "--ipam-driver", "host-local",
    )  # fmt: skip
    plugin = run.list("blue")["plugins"][0]
    assert (plugin["bridge"], plugin["dns"]) == ("br9", {"nameservers": ["192.0.2.53"]})
    run.container("c1")
    result = json.loads(run.good("attach", "blue", "c1", "--json"))
    assert result["ips"][0]["address"] == "10.3.0.3/24"  # not the auxiliary one
    assert {"dst": "10.50.0.0/16", "gw": "10.3.0.9", "priority": 100} in result["routes"]
    assert result["dns"]["nameservers"] == ["192.0.2.53"]
    assert run.good("network", "create", "blue", "--ignore") == "blue\n"
    assert run("network", "create", "blue").code == 4
    warned = run("network", "create", "green", "--ipam-opt", "a=b")
    assert (warned.code, warned.out) == (0, "green\n") and "ignoring --ipam-opt" in warned.err


def test_a_network_without_addresses_of_its_own(run) -> None:
    run.good("network", "create", "blue", "--ipam-driver", "none")
    run.good("network", "create", "dhcp", "--ipam-driver", "dhcp")
    assert run.list("blue")["plugins"][0]["ipam"] == {}
    assert run.list("dhcp")["plugins"][0]["ipam"] == {"type": "dhcp"}
    run.container("c1")
    assert "mac" in run.good("attach", "blue", "c1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--route", "10.5.0.0/24"), "invalid --route"),
        (("--route", "10.5.0.0/24,fd00::1"), "not of the same family"),
        (("--route", "10.5.0.0/24,10.3.0.9,many"), "for option --route"),
        (("--route", "10.5.0.0/24,10.4.0.9"), "the gateway of --route, 10.4.0.9 is not in 10."),
        (("--subnet", "10.5.0.0/31"), '--subnet "10.5.0.0/31" is too small'),
        (("--gateway", "10.3.0.255"), '--gateway "10.3.0.255" is not a host address'),
        (("--aux-address", "10.3.0.2"), "invalid --aux-address"),
        (("--aux-address", "r=10.4.0.2"), "--aux-address 10.4.0.2 is not in 10.3.0.0/24"),
        (("--dns", "one"), "invalid --dns 'one'"),
        (("--ipam-driver", "dhcp"), "--subnet is not supported with --ipam-driver dhcp"),
        (("--interface-name", "br9", "-o", "bridge=br8"), "mutually exclusive"),
        (("-d", "ptp", "--interface-name", "eth9"), "is not supported by driver ptp"),
        (("-d", "host", "--ipam-driver", "dhcp"), "is not supported by driver host"),
    ],
)
def test_options_of_create_that_cannot_be(run, arguments: tuple[str, ...], message: str) -> None:
    said = run("network", "create", "blue", *(() if "host" in arguments else ("--subnet", "10.3.0.0/24")), *arguments)
    assert said.code == 2 and message in said.err
    assert run.good("network", "ls", "-q") == ""


def test_the_name_servers_of_a_network_change(run) -> None:
    run.good("network", "create", "blue")
    run.good("network", "create", "named", "--names")
    for name, key in (("blue", "dns"), ("named", "names")):
        before = run.list(name)
        run.good("network", "update", name, "--dns-add", "192.0.2.1", "--dns-add", "192.0.2.2")
        assert run.good("network", "update", name, "--dns-drop", "192.0.2.1") == f"{name}\n"
        after = run.list(name)
        assert after["plugins"][0].pop(key) == {"nameservers": ["192.0.2.2"]}
        before["plugins"][0].pop(key, None)
        assert after == before
    run.container("c1")
    assert '"192.0.2.2"' in run.good("attach", "blue", "c1", "--json")
    assert "no such name server; it has 192.0.2.2" in run("network", "update", "blue", "--dns-drop", "192.0.2.1").err
    assert run("network", "update", "blue").code == 2


def test_reload_restores_what_a_container_lacks(run) -> None:
    run.good("network", "create", "blue")
    run.container("c1")
    run.good("attach", "blue", "c1", "-p", "8080:80")
    run.kernel.rules.remove()
    assert run("check").code == 1
    assert run.good("network", "reload", "c1") == "weft-c1\n"
    assert run.good("check") == "ok      weft-c1/eth0 on blue\n"
    assert run.good("network", "reload", "--all") == "weft-c1\n"
    assert run("network", "reload", "c2").code == 3
    assert run("network", "reload").code == 2
    run.kernel.open("/run/netns/c1").change_link("eth0", up=False)
    broken = run("network", "reload", "c1")
    assert (broken.code, broken.out) == (1, "weft-c1\n") and "eth0" in broken.err


def test_an_attachment_has_a_name_aliases_and_name_servers(run) -> None:
    run.good("network", "create", "blue")
    run.good("network", "create", "named", "--names")
    run.container("c1")
    planned = run.good(
        "plan", "named", "c1", "--name", "web", "--alias", "shop", "--hostname", "h1", "--dns", "192.0.2.1"
    )
    document = json.loads(planned[planned.index("weft agent  # reads ") :].partition("reads ")[2].splitlines()[0])
    assert document["names"] == ["web", "shop", "h1", "weft-web"]
    assert (document["container"], document["nameservers"]) == ("weft-web", ["192.0.2.1"])
    found = run.good("attach", "blue", "c1", "--name", "web", "--dns", "192.0.2.1")
    assert found.startswith("weft-web/eth0: ") and found.endswith("name servers: 192.0.2.1\n")
    assert run.good("ps", "--format", "{{.Name}}") == "web\n"
    assert run.good("detach", "blue", "c1") == "weft-web/eth0\n"
    assert "create the network with --names" in run("attach", "blue", "c1", "--alias", "shop").err
    for option in ("--alias", "--name", "--hostname"):
        assert f"invalid {option} 'a b'" in run("attach", "named", "c1", option, "a b").err
    assert "invalid --dns 'one'" in run("attach", "blue", "c1", "--dns", "one").err


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
    run.good("network", "create", "red")
    only = ("network", "prune", "--filter", "name=red")
    said = run(*only, typed="n\n")
    assert (said.code, said.err.splitlines()[-1].endswith("weft: nothing is removed")) == (1, True)
    assert run(*only, typed="y\n").out == "red\n"
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
    for name, left_out in LEFT_OUT[tool].items():
        command = [tool, "network", name, "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        theirs = set(re.findall(r"^ +(?:-\w, )?--([\w-]+)", text, re.MULTILINE)) - {"help"}
        assert theirs - options(name) <= left_out, f"{tool} network {name}"


def options(name: str) -> set[str]:
    group = weft.command_named("network")
    assert isinstance(group, click.Group)
    return {option.lstrip("-") for each in group.commands[name].params for option in each.opts}


@pytest.mark.parametrize("name", PODMAN_5)
def test_the_options_of_a_newer_podman(name: str) -> None:
    assert PODMAN_5[name] <= options(name)
