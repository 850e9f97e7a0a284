"""libnetwork's calls of the driver for Docker, on the fake kernel, without HTTP and without dockerd."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cni_plugin.docker.addresses import Addresses
from cni_plugin.docker.calls import Calls
from cni_plugin.docker.driver import Networks
from cni_plugin.service.verbs import Service
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.section import Problems, Section

NETWORK, ENDPOINT = "a9fe288e7882901a", "5fdefbdea97f9a5d"
SANDBOX = "/var/run/docker/netns/5fdefbdea97f"
GENERIC = "com.docker.network.generic"


class Fake(Calls):
    """Calls of a service on a fake kernel."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.kernel = FakeKernel()
        self.kernel.host.add_link("lan0", "dummy", up=True, mtu=1500)
        self._own.service = Service(self.kernel, Host(str(folder / "run"), "boot", time.time() - 500))
        self._own.service.records.prepare()


def call(**keys: object) -> Section:
    return Section(keys, "", Problems())


def created(driver: Networks, number: int = 18, name: str = NETWORK, /, **options: str) -> None:
    pool = {"AddressSpace": "LocalDefault", "Gateway": f"172.{number}.0.1/16", "Pool": f"172.{number}.0.0/16"}
    driver.create_network(call(NetworkID=name, Options={GENERIC: options}, IPv4Data=[pool], IPv6Data=[]))


def joined(driver: Networks, mac: str = "") -> dict[str, Any]:
    interface = {"Address": "172.18.0.2/16", "AddressIPv6": "", "MacAddress": mac}
    driver.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface=interface, Options={}))
    return driver.join(call(NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey=SANDBOX, Options={}))


def ended(driver: Networks) -> None:
    driver.leave(call(NetworkID=NETWORK, EndpointID=ENDPOINT))
    driver.delete_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT))


def pool_of(addresses: Addresses, subnet: str = "", part: str = "", v6: bool = False) -> dict[str, Any]:
    return addresses.request_pool(call(AddressSpace="weft", Pool=subnet, SubPool=part, V6=v6, Options={}))


def address_of(addresses: Addresses, pool: str, address: str = "", **options: str) -> str:
    return str(addresses.request_address(call(PoolID=pool, Address=address, Options=options))["Address"])
