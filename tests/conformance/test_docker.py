"""A real dockerd with ``weft docker``: the literal commands of ``docker network``, and traffic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.docked import Docked
from lab.plugins import ROOT
from lab.unpacked import unpack
from lab.waiting import until

pytestmark = pytest.mark.usefixtures("own")


@pytest.fixture
def machine(docked: Docked) -> Iterator[Docked]:
    """The machine; after the test nothing is left of its containers and networks."""
    yield docked
    docked.empty()


def test_networks_ports_and_containers_at_run_time(machine: Docked) -> None:
    machine.ask("network", "create", "-d", "weft", "my-net")
    machine.ask("network", "create", "-d", "weft", "-o", "driver=bridge", "--subnet", "10.91.0.0/24", "other")
    address = machine.serve("my-container", "--net=my-net", "-p", "8080:80", "-p", "192.0.2.1:8090-8095:80")
    machine.serve("client", "--net=other")

    # Published ports, also at one address and of a range; names by Docker.
    assert machine.page("outside", "192.0.2.1:8080") and machine.page("outside", "192.0.2.1:8090")
    ports = machine.weft("ps").stdout
    until(lambda: {"my-container", "client"} <= set(machine.weft("ps").stdout.split()), 30)
    assert "8080->80/tcp" in ports and "192.0.2.1:8090->80/tcp" in ports
    machine.ask("run", "-d", "--net=other", "-p", "8080:80", "page", "/bin/sleep", "60", fails=True)

    # Networks are closed to each other; connect and disconnect at run time.
    assert not machine.gets("client", address, expected=False)
    machine.ask("network", "connect", "--ip", "172.18.0.77", "my-net", "client", fails=True)  # no subnet of the user's
    machine.ask("network", "connect", "--alias", "visitor", "my-net", "client")
    assert machine.gets("client", "my-container") and machine.gets("my-container", "visitor")
    until(lambda: machine.problems() == [])
    machine.ask("network", "disconnect", "my-net", "client")
    assert not machine.gets("client", address, expected=False)

    # The whole of it is checked, in the containers' namespaces, too.
    until(lambda: "/run/docker/netns" in machine.weft("show", "--json", _endpoint(machine, "my-container")).stdout)
    assert machine.problems() == []
    machine.ask("stop", "-t", "0", "my-container")
    assert not machine.page("outside", "192.0.2.1:8080", expected=False)
    machine.ask("start", "my-container")
    assert machine.page("outside", "192.0.2.1:8080")


def _endpoint(machine: Docked, name: str) -> str:
    [found] = machine.inspect(name)["NetworkSettings"]["Networks"].values()
    return str(found["EndpointID"])


OVERLAY = {
    "format": 1,
    "network": "blue",
    "vni": 100,
    "mac": "02:77:00:00:00:01",
    "underlay": "192.0.2.1",
    "mtu": 1450,
    "subnets": ["10.60.0.0/16", "fd00:60::/48"],
    "blocks": ["10.60.1.0/29", "fd00:60:0:1::/64"],
}
FOLDER = "/var/lib/weft/overlay"


def test_the_commands_that_weft_was_asked_for(machine: Docked) -> None:
    """Docker's documented commands with -d weft, and weft's own, as a person types them: those of docs/docker.md."""
    machine.write(f"{FOLDER}/blue.json", json.dumps(OVERLAY))
    machine.write(f"{FOLDER}/blue.peers.json", json.dumps({"format": 1, "network": "blue", "peers": []}))
    overlay = "--subnet 10.60.0.0/16 --ipv6 --subnet fd00:60::/48 my-overlay"
    asked = (
        "docker network create -d weft my-net",
        "docker network create -d weft -o driver=bridge my-bridge",
        f"docker network create -d weft -o driver=overlay --ipam-driver weft {overlay}",
        "docker network ls --filter driver=weft",
        "weft network create -d bridge my-bridge",
        "weft network create -d host my-host",
        "weft network ls",
    )
    for line in asked:
        done = machine.run("sh", "-c", f"PATH=$PATH:{machine.weft_folder}/bin; {line}", check=False)
        print(f"$ {line}\n{done.stdout}{done.stderr}", end="")
        assert done.code == 0, done
    for network, begins in (("my-net", "172."), ("my-bridge", "172."), ("my-overlay", "10.60.1.")):
        line = f"docker run -it --net={network} --name=my-container page /bin/ip address"
        said = machine.run("script", "-qec", line, "/dev/null").stdout
        print(f"$ {line}\n{said}", end="")
        assert "eth0" in said and f"inet {begins}" in said
        machine.ask("rm", "my-container")
    assert machine.weft("network", "rm", "my-bridge", "my-host").code == 0


def test_an_overlay_network(machine: Docked) -> None:
    """The addresses are those of this host's blocks, also beside attachments that are not Docker's."""
    machine.write(f"{FOLDER}/blue.json", json.dumps(OVERLAY))
    machine.write(f"{FOLDER}/blue.peers.json", json.dumps({"format": 1, "network": "blue", "peers": []}))
    create = ("network", "create", "-d", "weft", "-o", "driver=overlay")
    subnets = ("--subnet", "10.60.0.0/16", "--ipv6", "--subnet", "fd00:60::/48")
    assert "driver overlay needs --ipam-driver weft" in machine.ask(*create, *subnets, "blue", fails=True)
    own = (*create, "--ipam-driver", "weft")
    assert "no overlay network with the subnet 10.99.0.0/16" in machine.ask(
        *own, "--subnet", "10.99.0.0/16", "blue", fails=True
    )
    machine.ask(*own, *subnets, "blue")
    assert machine.serve("o1", "--net=blue") == "10.60.1.2"
    assert machine.serve("o2", "--net=blue", "--ip", "10.60.1.5", "-p", "8080:80") == "10.60.1.5"
    assert "is not in this host's blocks: 10.60.1." in machine.ask(
        "run", "-d", "--net=blue", "--ip", "10.60.2.5", "page", "/bin/sleep", "60", fails=True
    )
    six = machine.inspect("o2")["NetworkSettings"]["Networks"]["blue"]["GlobalIPv6Address"]
    assert machine.gets("o1", "10.60.1.5") and machine.gets("o1", f"[{six}]")
    assert machine.page("outside", "192.0.2.1:8080")
    assert "default via fe80::1" in machine.ask("exec", "o1", "/bin/ip", "-6", "route")
    until(lambda: machine.problems() == [])


def test_the_clusters_networks_are_dockers(machine: Docked) -> None:
    """What the agent writes for a network of the cluster makes it one of Docker's, until it is removed."""
    green = {**OVERLAY, "network": "green", "vni": 101, "subnets": ["10.61.0.0/16"], "blocks": ["10.61.1.0/29"]}
    machine.write(f"{FOLDER}/green.peers.json", json.dumps({"format": 1, "network": "green", "peers": []}))
    machine.write(f"{FOLDER}/green.new", json.dumps({**green, "kept": True}))
    # An agent that is in no cluster removes what is left of one, as soon as it looks: a mounted file stays.
    machine.run("sh", "-c", f"cd {FOLDER} && mv green.new green.json && mount --bind green.json green.json")
    there = ("network", "ls", "-q", "--filter", "label=weft.cluster=green")
    until(lambda: machine.ask(*there), 60, "the network in Docker")
    assert machine.serve("g1", "--net=green") == "10.61.1.2" and machine.serve("g2", "--net=green") == "10.61.1.3"
    assert machine.gets("g1", "g2")
    machine.ask("rm", "-f", "g1", "g2")
    machine.run("sh", "-c", f"cd {FOLDER} && umount green.json && rm -f green.json")
    until(lambda: not machine.ask(*there), 60, "the network's removal")


def test_addresses_by_weft(machine: Docked) -> None:
    """--ipam-driver weft: subnet, gateway, range, reserved addresses, and those of single containers."""
    options = ("--subnet", "10.92.0.0/24", "--gateway", "10.92.0.9", "--ip-range", "10.92.0.64/26")
    reserved = ("--aux-address", "router=10.92.0.65")
    create = ("network", "create", "-d", "weft", "--ipam-driver", "weft")
    machine.ask(*create, *options, *reserved, "--ipv6", "--subnet", "fd00:92::/64", "fixed")
    assert machine.serve("one", "--net=fixed") == "10.92.0.64"
    given = ("--ip", "10.92.0.5", "--ip6", "fd00:92::5")
    assert machine.serve("two", "--net=fixed", *given) == "10.92.0.5"
    assert machine.serve("three", "--net=fixed") == "10.92.0.66"
    assert machine.gets("one", "10.92.0.5") and machine.gets("one", "[fd00:92::5]")
    assert "default via 10.92.0.9" in machine.ask("exec", "one", "/bin/ip", "route")
    assert "Address already in use" in machine.ask(
        "run", "-d", "--net=fixed", "--ip", "10.92.0.5", "page", "/bin/sleep", "60", fails=True
    )
    # A subnet is chosen that nobody has.
    machine.ask(*create, "chosen")
    [config] = machine.inspect("chosen")["IPAM"]["Config"]
    assert config["Subnet"].startswith("10.")
    assert "Pool overlaps with other one" in machine.ask(*create, "--subnet", "10.92.0.0/25", "again", fails=True)


def test_drivers(machine: Docked) -> None:
    create = ("network", "create", "-d", "weft")
    machine.ask(*create, "-o", "driver=ptp", "--subnet", "10.93.0.0/24", "points")
    machine.ask(*create, "-o", "driver=macvlan", "-o", "parent=lan0", "--subnet", "192.0.2.0/24", "--gateway",
                "192.0.2.2", "--ip-range", "192.0.2.128/25", "lan")  # fmt: skip
    machine.ask(*create, "--internal", "--subnet", "10.94.0.0/24", "inner")
    points = [machine.serve(name, "--net=points") for name in ("p1", "p2")]
    assert machine.gets("p1", points[1]) and machine.gets("p2", points[0])
    machine.serve("l1", "--net=lan")
    ping = ("docker", "exec", "l1", "/bin/ping", "-c1", "-W1", "192.0.2.2")
    assert machine.until(*ping).code == 0
    machine.serve("i1", "--net=inner")
    assert "default" not in machine.ask("exec", "i1", "/bin/ip", "route")
    assert machine.run("docker", "exec", "i1", *ping[3:], check=False).code != 0
    for name in ("p1", "l1", "i1"):
        until(lambda name=name: "/run/docker/netns" in machine.weft("show", "--json", _endpoint(machine, name)).stdout)
    until(lambda: machine.problems() == [])
    machine.ask("network", "connect", "inner", "l1")
    machine.ask("network", "disconnect", "lan", "l1")
    for options, said in (
        (("-o", "driver=overlay"), "driver overlay needs --ipam-driver weft"),
        (("-o", "colour=red"), "unknown option 'colour' for driver bridge"),
        (("--subnet", "192.0.2.0/25"), "Pool overlaps with other one on this address space"),
        (("-o", "driver=macvlan", "-o", "parent=lan9", "--subnet", "10.95.0.0/24"), 'master "lan9" not found'),
    ):
        assert said in machine.ask(*create, *options, "refused", fails=True)


COMPOSED = """
version: "2.4"
services:
  web:
    image: page
    command: /bin/httpd -f -p 80 -h /www
    ports: ["8080:80"]
    labels: {weft.service: "shop:80"}
  client:
    image: page
    command: /bin/sleep 600
    depends_on: [web]
networks:
  default:
    driver: weft
    driver_opts: {driver: bridge}
    ipam: {driver: weft, config: [{subnet: 10.95.0.0/24}]}
"""


@pytest.mark.long
def test_compose(machine: Docked) -> None:
    """Two services on a network of weft's: names, a published port, another one, and nothing left."""
    if machine.weft_folder != ROOT:
        pytest.skip("this root has no docker-compose")
    files = unpack("docker-compose")
    machine.write("/run/shop/docker-compose.yml", COMPOSED)
    libraries = f"PYTHONPATH={files}/usr/lib/python3/dist-packages"
    compose = ("env", "-C", "/run/shop", libraries, "/usr/bin/python3", f"{files}/usr/bin/docker-compose")
    machine.run(*compose, "up", "-d", timeout=300)
    assert machine.gets("shop_client_1", "web") and machine.page("outside", "192.0.2.1:8080")
    assert machine.resolves("shop_client_1", "shop.service.consul")
    assert {"10.95.0.2", "10.95.0.3"} == {
        machine.address(f"shop_{name}_1", "shop_default") for name in ("web", "client")
    }
    machine.run(*compose, "up", "-d", "--scale", "client=3", timeout=300)
    assert machine.gets("shop_client_3", "web")
    machine.run(*compose, "down", "-t", "0", timeout=300)
    assert not machine.ask("network", "ls", "-q", "--filter", "driver=weft")


def test_names_and_services(machine: Docked) -> None:
    """Docker tells the driver no names: they come from its API. Its resolver's queries reach weft's agent."""
    machine.ask("network", "create", "-d", "weft", "my-net")
    labels = ("--label", "weft.service=web:80", "--label", "weft.check=http:/", "--label", "weft.check.interval=1s")
    address = machine.serve("shop", "--net=my-net", "--network-alias", "store", *labels)
    machine.serve("old", "--net=my-net", "--label", "SERVICE_80_NAME=legacy", "--label", "SERVICE_80_TAGS=v1")
    machine.serve("client", "--net=my-net")
    for name in ("web.service.consul", "store.my-net", "v1.legacy.service.consul", "shop"):
        assert machine.resolves("client", name), (name, machine.log())
    assert machine.gets("client", "web.service.consul")
    # A container's own server is asked itself, and not replaced by the agent.
    machine.serve("chooser", "--net=my-net", "--dns", "192.0.2.2")
    machine.answers("192.0.2.99")
    asked = machine.until("docker", "exec", "chooser", "/bin/nslookup", "web.service.consul")
    assert "192.0.2.99" in asked.stdout, asked
    gateway = f"{address.rpartition('.')[0]}.1"
    asked = ("busybox", "nslookup", "shop.my-net", gateway)  # by others than Docker's containers
    assert address in machine.until(*asked).stdout
    until(lambda: machine.problems() == [])
    machine.ask("rename", "shop", "mall")
    assert machine.resolves("client", "mall.my-net")
    machine.ask("stop", "-t", "0", "mall")
    gone = machine.until("sh", "-c", "! docker exec client /bin/nslookup web.service.consul")
    assert gone.code == 0, gone


@pytest.mark.long
def test_dockers_own_options(machine: Docked) -> None:
    create = ("network", "create", "-d", "weft", "-o")
    bridge = "com.docker.network.bridge"
    machine.ask(*create, f"{bridge}.host_binding_ipv4=127.0.0.1", "-o", f"{bridge}.name=own0", "bound")
    machine.ask(*create, f"{bridge}.enable_icc=false", "-o", "com.docker.network.driver.mtu=1400", "apart")
    # A new docker command passes the address in a way that an old dockerd does not know.
    mac = ("--mac-address", "02:00:00:00:00:77") if machine.weft_folder != ROOT else ()
    machine.serve("b1", "--net=bound", *mac, "-p", "8081:80")
    assert "127.0.0.1:8081->80/tcp" in machine.weft("ps").stdout and "own0" in machine.links()
    assert not mac or mac[1] in machine.ask("exec", "b1", "/bin/ip", "link", "show", "eth0")
    assert not machine.page("outside", "192.0.2.1:8081", expected=False)
    first = machine.serve("a1", "--net=apart", "-p", "8082-8083:80")
    machine.serve("a2", "--net=apart", "-p", "8082-8083:80")
    assert "mtu 1400" in machine.ask("exec", "a1", "/bin/ip", "link", "show", "eth0")
    assert machine.page("outside", "192.0.2.1:8082") and machine.page("outside", "192.0.2.1:8083")
    assert not machine.gets("a2", first, expected=False)
    # Two networks, one of which leads to the outside.
    machine.ask("network", "create", "-d", "weft", "--internal", "inner")
    machine.ask("network", "connect", "inner", "a1")
    assert "default" in machine.ask("exec", "a1", "/bin/ip", "route")
    until(lambda: machine.problems() == [])


def test_the_gateway_of_several_networks(machine: Docked) -> None:
    """Docker chooses it by the networks' names, at run time, too; the published ports follow it."""
    create = ("network", "create", "-d", "weft", "--subnet")
    machine.ask(*create, "10.91.0.0/24", "middle")
    machine.ask(*create, "10.92.0.0/24", "before")
    machine.ask(*create, "10.93.0.0/24", "-o", "default-route=false", "after")
    machine.ask(*create, "192.0.2.0/24", "--gateway", "192.0.2.2", "--ip-range", "192.0.2.128/25",
                "-o", "driver=macvlan", "-o", "parent=lan0", "-o", "default-route=false", "a-lan")  # fmt: skip

    def leads(name: str, gateway: str) -> bool:
        return f"default via {gateway} " in machine.ask("exec", name, "/bin/ip", "route") + " "

    machine.serve("both", "--net=middle", "-p", "8080:80")
    assert leads("both", "10.91.0.1") and machine.page("outside", "192.0.2.1:8080")
    machine.ask("network", "connect", "after", "both")
    assert leads("both", "10.91.0.1") and machine.page("outside", "192.0.2.1:8080")
    machine.ask("network", "connect", "before", "both")
    assert leads("both", "10.92.0.1") and machine.page("outside", "192.0.2.1:8080")
    assert machine.weft("ps").stdout.count("8080->80/tcp") == 1
    machine.ask("network", "disconnect", "middle", "both")
    machine.ask("network", "disconnect", "before", "both")
    assert "default" not in machine.ask("exec", "both", "/bin/ip", "route")
    assert not machine.page("outside", "192.0.2.1:8080", expected=False)
    machine.ask("network", "connect", "middle", "both")
    assert leads("both", "10.91.0.1") and machine.page("outside", "192.0.2.1:8080")
    # Not refused, though its containers publish no ports. From now on they answer the neighbour directly.
    machine.ask("network", "connect", "a-lan", "both")
    assert leads("both", "10.91.0.1") and machine.weft("ps").stdout.count("8080->80/tcp") == 1
    until(lambda: machine.problems() == [])


@pytest.mark.long
def test_after_a_boot(machine: Docked) -> None:
    """Docker repeats neither networks nor pools; containers with a restart policy start as before."""
    create = ("network", "create", "-d", "weft", "--ipam-driver", "weft", "--subnet")
    machine.ask(*create, "10.96.0.0/24", "kept")
    machine.ask(*create, "10.97.0.0/24", "unused")
    machine.serve("always", "--net=kept", "--restart=always", "-p", "8080:80")
    machine.serve("once", "--net=kept")
    machine.kill_docker()
    machine.kill_driver()
    machine.boot()
    assert not [name for name in machine.links() if name.startswith("weft-")]
    used = machine.weft("network", "create", "--subnet", "10.97.0.0/25", "other")
    assert "Docker's network" in used.stderr, used
    machine.drive()
    machine.docker()
    until(lambda: machine.inspect("always")["State"]["Running"], 60)
    assert machine.page("outside", "192.0.2.1:8080")
    machine.ask("start", "once")
    assert machine.gets("once", "always")
    machine.serve("new", "--net=unused")
    until(lambda: machine.endpoints()[0] == machine.endpoints()[1], 60)
    until(lambda: machine.problems() == [], 60)


@pytest.mark.long
def test_nothing_is_lost(machine: Docked) -> None:
    """The driver is killed and dockerd is killed; what Docker removed meanwhile is gone with the next start."""
    create = ("network", "create", "-d", "weft", "--ipam-driver", "weft")
    machine.ask(*create, "--subnet", "10.96.0.0/24", "kept")
    machine.ask(*create, "--subnet", "10.97.0.0/24", "lost")
    machine.serve("always", "--net=kept", "--restart=always", "-p", "8080:80")
    machine.serve("gone", "--net=lost")

    machine.kill_driver()
    assert machine.page("outside", "192.0.2.1:8080")
    machine.drive()
    assert machine.serve("more", "--net=kept") == "10.96.0.3"

    machine.docker()  # stopped and started: no CreateNetwork, no RequestPool is repeated
    assert machine.page("outside", "192.0.2.1:8080")
    machine.ask("start", "more")
    assert machine.gets("more", "always")

    # The files of one network are lost, those of others are of what Docker does not have.
    machine.kill_driver()
    lost = machine.ask("network", "inspect", "-f", "{{.Id}}", "lost")
    machine.run("rm", f"/var/lib/weft/docker/networks/{lost}.json")
    for name in machine.kept():
        if "/networks/" in name:
            text = machine.run("cat", name).stdout.replace(Path(name).stem, "f" * 64)
            text = text.replace(Path(name).stem[:12], "f" * 12).replace(Path(name).stem[:10], "f" * 10)
            machine.write(f"/var/lib/weft/docker/networks/{'f' * 64}.json", text)
    machine.drive()
    machine.until("test", "-e", f"/var/lib/weft/docker/networks/{lost}.json")
    gone = machine.until("test", "!", "-e", f"/var/lib/weft/docker/networks/{'f' * 64}.json", timeout=30)
    assert gone.code == 0, machine.log()
    assert machine.page("outside", "192.0.2.1:8080")
    machine.ask("start", "gone")

    before = machine.endpoints()[0]
    machine.kill_docker()
    machine.docker()  # it starts its containers anew
    until(lambda: machine.inspect("always")["State"]["Running"], 30)
    until(lambda: machine.endpoints()[0] == machine.endpoints()[1], 30)
    assert machine.endpoints()[0].isdisjoint(before)
    assert machine.page("outside", "192.0.2.1:8080")
    until(lambda: machine.problems() == [])
