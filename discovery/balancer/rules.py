"""The table ``inet weft-services``: rules that never change, and the sets and maps in which the services are.

A connection to a virtual address meets one look-up, which knows address, protocol and port and leads to the chain of
the service's algorithm. That chain chooses a slot, a number below the size of the service's table, and a second
look-up says which instance has that slot. So a connection costs the same with ten services and with ten thousand, a
change of a service is a change of some elements, and what differs between the algorithms is only how slots are dealt
out (``algorithms``) and chosen:

``randomN``     a random one of N slots
``turnK_N``     the next one of N slots, by counter K; services that go in turn share the few counters there are
``sourceN``     by the client's address, so that a client stays with its instance
``maglevN``     by the client's address and port; with equal tables every host sends a connection to the same instance
``stickyS_N``   a random one when a client comes first, the same for as long as it comes again within S seconds

Chains that packets enter by
    ``arriving``    a connection from elsewhere: to a virtual address, but from links in ``outside``; else to a
                    published port of this host. It comes after other nat chains of the usual priority, so
                    that a port that a container has published itself is that container's.
    ``leaving``     the same for connections of this host's own processes. A process that speaks from the loopback
                    reaches no service by a published port: use the virtual address.
    ``refusing``    what is still for a virtual address after that has nobody to answer it: no healthy instance, or a
                    port that no service has. TCP is reset, all else told that it is unreachable. The same
                    for all addresses of the ranges.
    ``refused``     the same for this host's own processes.
    ``sources``     gives a connection this host as its source where the answers would otherwise go past this host:
                    see ``near`` and ``far``.

Chains that those use
    ``near``        for an instance on this host: the connection came in by the link that it goes out by (``turning``,
                    bridges whose bridged packets the kernel does not show to these rules), or from the
                    instance itself (``selves4``), or from this host, whose answers an instance without a
                    default route could not send otherwise.
    ``far``         for an instance elsewhere: the connection came from ``outside``, or from this host.

Sticky tables keep the slot in the packet's priority while they look it up: the mark is other software's, and routes. A
client from which nothing comes for the whole time is forgotten; at most 65,535 clients are remembered of each
family, and the others are sent anywhere.

Sources: nft(8), ``linux/netfilter_ipv4.h`` for the priorities.
"""

from __future__ import annotations

from weft.identity import digest

TABLE = "inet weft-services"

SIZES = (1, 12, 61, 251, 1021)
"""How many slots a table can have. But for 1 and 12 they are primes, which Maglev's hashing needs."""
COUNTERS = 8
STICKY_SECONDS = (60, 600, 3600, 10800, 86400)
"""How long a client can be remembered: these are timeouts in the rules."""
STICKY_SIZES = (61, 251)
HASHED_SIZES = (251, 1021)
SEED = 0x77656674
"""Of all hashes, the same on every host."""

SERVICES = {4: "services4", 6: "services6"}
"""``(virtual address, protocol, port)`` to a chain."""
PORTS = {4: "ports4", 6: "ports6"}
"""``(protocol, published port)`` to a chain."""
SLOTS = {4: "slots4", 6: "slots6"}
"""``(virtual address, protocol, port, slot)`` to ``(address, port)`` of an instance."""
STICKY_SLOTS = {4: "sticky_slots4", 6: "sticky_slots6"}
"""The same for tables that are sticky; apart, since to nftables a slot there is of another type."""
PORT_SLOTS = {4: "port_slots4", 6: "port_slots6"}
"""``(protocol, published port, slot)`` to ``(address, port)`` of an instance."""
VIRTUALS = {4: "virtuals4", 6: "virtuals6"}
"""Every virtual address: ``(address,)``."""
NEAR = {4: "near4", 6: "near6"}
FAR = {4: "far4", 6: "far6"}
"""``(address, protocol, port)`` of every instance on this host, and of every other."""
SELVES = {4: "selves4", 6: "selves6"}
"""``(address, the same address)`` of every instance."""
RANGES = {4: "ranges4", 6: "ranges6"}
"""The ranges that virtual addresses are taken from: intervals, which are set with the rules."""
OUTSIDE = "outside"
"""Links by which virtual addresses cannot be reached: ``(link,)``."""
TURNING = "turning"
"""Links behind which answers can go past this host: ``(link, the same link)``."""

_ADDRESSES = {4: "ip", 6: "ip6"}
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
_CLIENTS = {4: "ip saddr . ip daddr", 6: f"jhash ip6 saddr . ip6 daddr mod 0x7fffffff seed {SEED:#x}"}
"""What is remembered of a client. Of IPv6 a hash, for nftables 1.0.6 cannot update longer keys than 16 bytes; two
clients of one hash go to one instance, which is no harm."""
_REMEMBERED = {4: _CLIENTS[4], 6: "numgen random mod 2"}
"""The same as the type of a key: a number is named by any expression that gives one, but 1.0.6 cannot list a hash."""


def _sets() -> list[str]:
    lines = []
    for version, ip in _ADDRESSES.items():
        kind = _TYPES[version]
        port = "meta l4proto . th dport"
        place = f"{ip} daddr . {port}"
        lines += [
            f"map {SERVICES[version]} {{ type {kind} . inet_proto . inet_service : verdict; }}",
            f"map {PORTS[version]} {{ type inet_proto . inet_service : verdict; }}",
            f"map {SLOTS[version]} {{ typeof {place} . numgen random mod 2 : {ip} daddr . th dport; }}",
            f"map {STICKY_SLOTS[version]} {{ typeof {place} . meta priority : {ip} daddr . th dport; }}",
            f"map {PORT_SLOTS[version]} {{ typeof {port} . numgen random mod 2 : {ip} daddr . th dport; }}",
            f"set {VIRTUALS[version]} {{ type {kind}; }}",
            f"set {NEAR[version]} {{ type {kind} . inet_proto . inet_service; }}",
            f"set {FAR[version]} {{ type {kind} . inet_proto . inet_service; }}",
            f"set {SELVES[version]} {{ type {kind} . {kind}; }}",
            f"set {RANGES[version]} {{ type {kind}; flags interval; }}",
        ]
        for seconds in STICKY_SECONDS:
            lines.append(
                f"map clients{version}_{seconds} {{ typeof {_REMEMBERED[version]} : meta priority; "
                f"flags dynamic,timeout; timeout {seconds}s; size 65535; }}"
            )
    return [*lines, f"set {OUTSIDE} {{ type ifname; }}", f"set {TURNING} {{ type ifname . ifname; }}"]


def _chain(name: str, *rules: str) -> str:
    return "\n".join([f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"])


def _choosing(choice: str) -> list[str]:
    """The rules of a chain that chooses a slot by an expression; ``IP`` in it is the family's keyword."""
    rules = []
    for version, ip in _ADDRESSES.items():
        by = choice.replace("IP", ip)
        rules.append(f"dnat {ip} to {ip} daddr . meta l4proto . th dport . {by} map @{SLOTS[version]}")
        rules.append(f"fib daddr type local dnat {ip} to meta l4proto . th dport . {by} map @{PORT_SLOTS[version]}")
    return rules


def _sticking(seconds: int, size: int) -> list[str]:
    """The slot is drawn, remembered unless there was one, and looked up.

    What is drawn counts where no memory is left, and what is drawn again where the table has become smaller.
    """
    draw = f"meta priority set numgen random mod {size}"
    sends = [
        f"dnat {ip} to {ip} daddr . meta l4proto . th dport . meta priority map @{STICKY_SLOTS[version]}"
        for version, ip in _ADDRESSES.items()
    ]
    rules = [draw]
    for version, client in _CLIENTS.items():
        rules += [
            f"update @clients{version}_{seconds} {{ {client} timeout {seconds}s : meta priority }}",
            f"meta priority set {client} map @clients{version}_{seconds}",
        ]
    return [*rules, *sends, draw, *sends]


def _choices() -> list[str]:
    chains = [_chain(f"random{size}", *_choosing(f"numgen random mod {size}")) for size in SIZES]
    chains += [
        _chain(f"turn{counter}_{size}", *_choosing(f"numgen inc mod {size}"))
        for counter in range(COUNTERS)
        for size in SIZES[1:]
    ]
    for size in HASHED_SIZES:
        chains.append(_chain(f"source{size}", *_choosing(f"jhash IP saddr mod {size} seed {SEED:#x}")))
        chains.append(_chain(f"maglev{size}", *_choosing(f"jhash IP saddr . th sport mod {size} seed {SEED:#x}")))
    chains += [
        _chain(f"sticky{seconds}_{size}", *_sticking(seconds, size))
        for seconds in STICKY_SECONDS
        for size in STICKY_SIZES
    ]
    return chains


def _looking_up(version: int, ip: str) -> tuple[str, str]:
    return (
        f"{ip} daddr . meta l4proto . th dport vmap @{SERVICES[version]}",
        f"meta nfproto {_NFPROTO[version]} fib daddr type local meta l4proto . th dport vmap @{PORTS[version]}",
    )


_NFPROTO = {4: "ipv4", 6: "ipv6"}


def _entrances() -> list[str]:
    virtual4, published4 = _looking_up(4, "ip")
    virtual6, published6 = _looking_up(6, "ip6")
    refused = [
        f"{ip} daddr @{name[version]} goto refuse" for version, ip in _ADDRESSES.items() for name in (VIRTUALS, RANGES)
    ]
    return [
        _chain("published", published4, published6),
        _chain(
            "arriving",
            "type nat hook prerouting priority dstnat + 5; policy accept;",
            f"iifname @{OUTSIDE} goto published",
            virtual4,
            virtual6,
            "goto published",
        ),
        _chain(
            "leaving",
            "type nat hook output priority -95; policy accept;",
            "ip saddr 127.0.0.0/8 return",
            "ip6 saddr ::1 return",
            virtual4,
            virtual6,
            "goto published",
        ),
        _chain("refuse", "meta l4proto tcp reject with tcp reset", "reject"),
        _chain("refusing", "type filter hook prerouting priority dstnat + 15; policy accept;", *refused),
        _chain("refused", "type filter hook output priority -85; policy accept;", *refused),
        _chain(
            "near",
            f"iifname . oifname @{TURNING} masquerade",
            f"ip saddr . ip daddr @{SELVES[4]} masquerade",
            f"ip6 saddr . ip6 daddr @{SELVES[6]} masquerade",
            "fib saddr type local masquerade",
        ),
        _chain("far", f"iifname @{OUTSIDE} masquerade", "fib saddr type local masquerade"),
        _chain(
            "sources",
            "type nat hook postrouting priority srcnat - 5; policy accept;",
            # Sets and no map of verdicts: for each of its new elements the kernel would go through all the others.
            *(
                f"ct status dnat {ip} daddr . meta l4proto . th dport @{instances[version]} goto {chain}"
                for chain, instances in (("near", NEAR), ("far", FAR))
                for version, ip in _ADDRESSES.items()
            ),
        ),
    ]


def base() -> str:
    """The table without a single element, as nft reads it."""
    sets = "\n".join(f"\t{line}" for line in _sets())
    # Before the chains that lead to them.
    return f"table {TABLE} {{\n{sets}\n" + "\n".join([*_choices(), *_entrances()]) + "\n}\n"


BASE = base()
VERSION = digest(BASE)
"""Of the rules; in the comment of a rule that no packet meets, so that a newer weft knows an older one's."""
