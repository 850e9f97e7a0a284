"""weft's DNS server for the benchmarks; arguments: PORT NAMES UPSTREAM FILE.

It serves NAMES services, read from FILE in the store's format, and as many containers on one network.
"""

from __future__ import annotations

import asyncio
import gc
import marshal
import sys
from pathlib import Path

from discovery import layout
from discovery.catalog import Catalog
from discovery.dns.network_zones import NetworkZone, NetworkZones
from discovery.dns.server import DnsServer
from discovery.dns.settings import DnsSettings, ListenAddress
from discovery.structs import CatalogEntry, Instance, Node
from store import Entry

NETWORK = "127.0.5.1"


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def services(many: int) -> bytes:
    """One service per name, on one node, in the store's format."""
    values: list[CatalogEntry] = [Node("n1", "10.255.0.1")]
    values += [Instance("n1", f"s{n}", f"s{n}", address(n), 80) for n in range(many)]
    return marshal.dumps([(layout.store_key(value), layout.encode(value)) for value in values])


def catalog(path: str) -> Catalog:
    """A catalog with all services of the file."""
    found = Catalog()
    entries = marshal.loads(Path(path).read_bytes())
    found.load([Entry(key, value, 2, 2, 1) for key, value in entries], 2)
    return found


async def main(port: int, many: int, upstream: str, path: str) -> None:
    settings = DnsSettings(listen=(ListenAddress("127.0.0.1", port),), network_port=port)
    names = NetworkZones()
    records = {f"c{n}": (address(n),) for n in range(many)}
    upstreams = (upstream,)
    names.put(NetworkZone("blue", (NETWORK,), ("127.0.0.0/8",), records=records, upstreams=upstreams))
    server = DnsServer(catalog(path), names, settings)
    await server.start()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
