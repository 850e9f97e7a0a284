"""The table ``inet weft-services``: static rules, and the sets and maps that hold the services.

A connection to a virtual address meets one look-up, by address, protocol and port, which leads to
the chain of the service's algorithm. That chain chooses a slot, a number below the size of the
service's slot table, and a second look-up says which instance has that slot. So a connection costs
the same with ten services and with ten thousand, a change of a service is a change of some
elements, and the algorithms differ only in how slots are assigned (``algorithms``) and chosen:

``random{N}``           a random one of N slots ``round_robin{K}_{N}``  the next one of N slots, by
counter K; services share the few counters there are ``source_hash{N}``      by the client's address, so
that a client stays with its instance ``maglev{N}``           by the client's address and port; with
equal slot tables every host chooses the same instance ``sticky{S}_{N}``       a random one when a
client comes first, the same for as long as it comes again within S seconds

Sticky chains keep the slot in the packet's priority while they look it up: the mark is other
software's, and routes. A client is forgotten when it has sent nothing for the whole time; at most
65,535 clients are remembered of each family, and further ones are sent to a random slot each time.

Sources: nft(8), ``linux/netfilter_ipv4.h`` for the priorities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from discovery.balancer.settings import Network
from weft.kernel.schema import Chain, Rule, Set, Table, Tables, maps, rules, sets

TABLE = "inet weft-services"

SIZES = (1, 12, 61, 251, 1021)
"""How many slots a slot table can have: primes, as Maglev's hashing needs, but for 1 and 12."""
COUNTERS = 8
STICKY_SECONDS = (60, 600, 3600, 10800, 86400)
"""How long a client can be remembered: these are timeouts in the rules."""
STICKY_SIZES = (61, 251)
HASHED_SIZES = (251, 1021)
SEED = 0x77656674
"""Of all hashes, the same on every host."""
REMEMBERED_CLIENTS = 65535

SERVICES = {4: "services4", 6: "services6"}
PORTS = {4: "ports4", 6: "ports6"}
SLOTS = {4: "slots4", 6: "slots6"}
STICKY_SLOTS = {4: "sticky_slots4", 6: "sticky_slots6"}
"""Apart from the other slots, since to nftables a slot there is of another type."""
PORT_SLOTS = {4: "port_slots4", 6: "port_slots6"}
VIRTUAL_IPS = {4: "virtual_ips4", 6: "virtual_ips6"}
LOCAL_BACKENDS = {4: "local_backends4", 6: "local_backends6"}
REMOTE_BACKENDS = {4: "remote_backends4", 6: "remote_backends6"}
HAIRPIN_SELF = {4: "hairpin_self4", 6: "hairpin_self6"}
VIRTUAL_RANGES = {4: "virtual_ranges4", 6: "virtual_ranges6"}
OUTSIDE_LINKS = "outside_links"
HAIRPIN_LINKS = "hairpin_links"

ROUND_ROBIN = "round_robin"
SOURCE_HASH = "source_hash"

_CLIENTS = {4: "ip saddr . ip daddr", 6: f"jhash ip6 saddr . ip6 daddr mod 0x7fffffff seed {SEED:#x}"}
"""What is remembered of a client. Of IPv6 a hash, for nftables 1.0.6 cannot update keys longer than
16 bytes; two clients with one hash go to one instance, which does no harm.
"""
_REMEMBERED = {4: _CLIENTS[4], 6: "numgen random mod 2"}
"""The same as the type of a key: a number is named by any expression that gives one, but 1.0.6
cannot list a hash.
"""

_PORT = "meta l4proto . th dport"
_SLOT = "{ip} daddr . meta l4proto . th dport"
_BACKEND = "{ip} daddr . th dport"


def _sets(ranges: tuple[Network, ...]) -> Iterator[Set]:
    yield from maps(
        "services{v}",
        "{address} . inet_proto . inet_service",
        "verdict",
        "virtual address, protocol and port of a service: the chain of its algorithm",
        "services with a virtual address",
    )
    yield from maps(
        "ports{v}",
        "inet_proto . inet_service",
        "verdict",
        "protocol and published port of a service: the chain of its algorithm",
        "services with a published port",
    )
    yield from maps(
        "slots{v}",
        f"{_SLOT} . numgen random mod 2",
        _BACKEND,
        "virtual address, protocol, port and slot: address and port of the instance",
        "services with a virtual address",
        typeof=True,
    )
    yield from maps(
        "sticky_slots{v}",
        f"{_SLOT} . meta priority",
        _BACKEND,
        "like slots{v}, for services with the algorithm sticky",
        "services with the algorithm sticky",
        typeof=True,
    )
    yield from maps(
        "port_slots{v}",
        f"{_PORT} . numgen random mod 2",
        _BACKEND,
        "protocol, published port and slot: address and port of the instance",
        "services with a published port",
        typeof=True,
    )
    yield from sets("virtual_ips{v}", "{address}", "virtual addresses of services", "services", "virtuals{v}")
    place = "{address} . inet_proto . inet_service"
    yield from sets(
        "local_backends{v}", place, "address, protocol and port of instances on this host", "services", "near{v}"
    )
    yield from sets(
        "remote_backends{v}", place, "address, protocol and port of instances on other hosts", "services", "far{v}"
    )
    yield from sets(
        "hairpin_self{v}",
        "{address} . {address}",
        "source and destination: an instance that connects to its own service",
        "services",
        "selves{v}",
    )
    for version in (4, 6):
        yield Set(
            VIRTUAL_RANGES[version],
            f"ipv{version}_addr",
            "ranges that virtual addresses are taken from",
            "the configuration",
            flags=("interval",),
            formerly=(f"ranges{version}",),
            elements=tuple(str(one) for one in ranges if one.version == version),
        )
        for seconds in STICKY_SECONDS:
            yield Set(
                f"clients{version}_{seconds}",
                _REMEMBERED[version],
                f"clients of sticky services and the slot of each, kept for {seconds} s after the last connection",
                "the rules themselves",
                typeof=True,
                flags=("dynamic", "timeout"),
                timeout=seconds,
                size=REMEMBERED_CLIENTS,
                to="meta priority",
            )
    yield Set(
        OUTSIDE_LINKS,
        "ifname",
        "links from which only published ports may be reached, not virtual addresses",
        "outside",
        formerly=("outside",),
    )
    yield Set(
        HAIRPIN_LINKS,
        "ifname . ifname",
        "incoming and outgoing link, where both are the same bridge: replies would bypass this host",
        "every bridge of this host, unless bridge-nf-call-iptables=1",
        formerly=("turning",),
    )


def _choosing(choice: str) -> tuple[Rule, ...]:
    """The rules of a chain that chooses a slot by an expression."""
    pairs = zip(
        rules(f"dnat {{ip}} to {_SLOT} . {choice} map @slots{{v}}", "to the instance that has the slot"),
        rules(
            f"fib daddr type local dnat {{ip}} to {_PORT} . {choice} map @port_slots{{v}}",
            "the same for a published port",
        ),
        strict=True,
    )
    return tuple(rule for pair in pairs for rule in pair)


def _sticking(seconds: int, size: int) -> tuple[Rule, ...]:
    draw = f"meta priority set numgen random mod {size}"
    sends = rules(f"dnat {{ip}} to {_SLOT} . meta priority map @sticky_slots{{v}}", "to the instance that has the slot")
    found = [Rule(draw, "a random slot: for a client that is not remembered, also where the map of clients is full")]
    for version, client in _CLIENTS.items():
        clients = f"@clients{version}_{seconds}"
        found += [
            Rule(
                f"update {clients} {{ {client} timeout {seconds}s : meta priority }}",
                "remembers the slot, unless one is remembered, and restarts the timeout",
            ),
            Rule(f"meta priority set {client} map {clients}", "the remembered slot"),
        ]
    return (*found, *sends, Rule(draw, "no instance has the remembered slot any more: another one"), *sends)


def _choices() -> Iterator[Chain]:
    for size in SIZES:
        yield Chain(f"random{size}", f"chooses a random one of {size} slots", _choosing(f"numgen random mod {size}"))
    for counter in range(COUNTERS):
        for size in SIZES[1:]:
            yield Chain(
                f"{ROUND_ROBIN}{counter}_{size}",
                f"chooses the next one of {size} slots, by counter {counter}",
                _choosing(f"numgen inc mod {size}"),
                formerly=(f"turn{counter}_{size}",),
            )
    for size in HASHED_SIZES:
        yield Chain(
            f"{SOURCE_HASH}{size}",
            f"chooses one of {size} slots by the client's address",
            _choosing(f"jhash {{ip}} saddr mod {size} seed {SEED:#x}"),
            formerly=(f"source{size}",),
        )
        yield Chain(
            f"maglev{size}",
            f"chooses one of {size} slots by the client's address and port",
            _choosing(f"jhash {{ip}} saddr . th sport mod {size} seed {SEED:#x}"),
        )
    for seconds in STICKY_SECONDS:
        for size in STICKY_SIZES:
            why = f"chooses one of {size} slots, the same for a client that connects again within {seconds} s"
            yield Chain(f"sticky{seconds}_{size}", why, _sticking(seconds, size))


def _lookups() -> tuple[Rule, ...]:
    return rules("{ip} daddr . meta l4proto . th dport vmap @services{v}", "a virtual IPv{v} address and port")


def _entrances() -> Iterable[Chain]:
    unserved = tuple(
        Rule(f"{ip} daddr @{name[version]} goto reject_unserved", why)
        for version, ip in ((4, "ip"), (6, "ip6"))
        for name, why in (
            (VIRTUAL_IPS, "no healthy instance, or no such port"),
            (VIRTUAL_RANGES, "no service has this address"),
        )
    )
    return (
        Chain(
            "published_ports",
            "connections to published ports of services",
            tuple(
                Rule(
                    f"meta nfproto ipv{version} fib daddr type local meta l4proto . th dport vmap @ports{version}",
                    f"a published port, IPv{version}",
                )
                for version in (4, 6)
            ),
            formerly=("published",),
        ),
        Chain(
            "nat_prerouting",
            "connections from other hosts and from containers; ports that containers publish take precedence",
            (
                Rule(
                    f"iifname @{OUTSIDE_LINKS} goto published_ports", "virtual addresses are not reachable from outside"
                ),
                *_lookups(),
                Rule("goto published_ports", "not a virtual address"),
            ),
            hook="prerouting",
            priority="dstnat + 5",
            type="nat",
            formerly=("arriving",),
        ),
        Chain(
            "nat_output",
            "connections of this host's own processes",
            (
                Rule("ip saddr 127.0.0.0/8 return", "not balanced: the kernel sends no loopback address out of a link"),
                Rule("ip6 saddr ::1 return", "not balanced: the kernel sends no loopback address out of a link"),
                *_lookups(),
                Rule("goto published_ports", "not a virtual address"),
            ),
            hook="output",
            priority="-95",
            type="nat",
            formerly=("leaving",),
        ),
        Chain(
            "reject_unserved",
            "rejects packets that are still addressed to a virtual address",
            (
                Rule("meta l4proto tcp reject with tcp reset", "TCP"),
                Rule("reject", "anything else: ICMP port unreachable"),
            ),
            formerly=("refuse",),
        ),
        Chain(
            "filter_prerouting",
            "virtual addresses without an instance: packets from other hosts and from containers",
            unserved,
            hook="prerouting",
            priority="dstnat + 15",
            formerly=("refusing",),
        ),
        Chain(
            "filter_output",
            "virtual addresses without an instance: packets of this host's own processes",
            unserved,
            hook="output",
            priority="-85",
            formerly=("refused",),
        ),
        Chain(
            "snat_local",
            "to an instance on this host: masquerades connections whose replies would otherwise bypass this host",
            (
                Rule(f"iifname . oifname @{HAIRPIN_LINKS} masquerade", "client and instance on the same bridge"),
                *rules("{ip} saddr . {ip} daddr @hairpin_self{v} masquerade", "from the instance itself"),
                Rule("fib saddr type local masquerade", "from this host: an instance may have no default route"),
            ),
            formerly=("near",),
        ),
        Chain(
            "snat_remote",
            "to an instance on another host: masquerades connections whose replies would otherwise bypass this host",
            (
                Rule(f"iifname @{OUTSIDE_LINKS} masquerade", "from outside: replies must come back through this host"),
                Rule("fib saddr type local masquerade", "from this host, whichever source address it has"),
            ),
            formerly=("far",),
        ),
        Chain(
            "nat_postrouting",
            "source addresses of balanced connections",
            # Sets and no verdict map: for each new element of a verdict map the kernel would walk
            # all the others.
            tuple(
                Rule(f"ct status dnat {ip} daddr . {_PORT} @{instances[version]} goto {chain}", why)
                for chain, instances, why in (
                    ("snat_local", LOCAL_BACKENDS, "to an instance on this host"),
                    ("snat_remote", REMOTE_BACKENDS, "to an instance on another host"),
                )
                for version, ip in ((4, "ip"), (6, "ip6"))
            ),
            hook="postrouting",
            priority="srcnat - 5",
            type="nat",
            formerly=("sources",),
        ),
    )


def tables(ranges: tuple[Network, ...] = ()) -> Tables:
    """The table with the ranges that virtual addresses are taken from, and no service."""
    family, _, name = TABLE.partition(" ")
    chains = (*_choices(), *_entrances())
    return Tables(
        (
            Table(
                family,
                name,
                "load balancing of services: virtual addresses and published ports; the services: weft services",
                tuple(_sets(ranges)),
                chains,
            ),
        )
    )
