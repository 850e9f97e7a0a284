"""The rules that weft installs once on a host, and the sets and maps that they look into.

There are two tables, ``inet weft`` for packets and ``bridge weft`` for frames (``nft list table inet weft``), and
their rules are the same whether one container runs or ten thousand. What belongs to a container is an element of a
set or map, with the mark of its attachment as the comment, so a packet costs the same few look-ups however many
there are.

Chains of ``inet weft`` that packets enter by
    ``guard``        before anything else: what arrives from a wire (or a container) and claims to come from or go to
                     127.0.0.0/8 or ::1 is dropped (CVE-2020-8558). The kernel does so, too, but not on a link
                     with ``route_localnet``, which others set, and only once ``ports`` has sent a published
                     port's on (those for ::1: where br_netfilter shows bridged packets to the rules). Then
                     ``senders`` and ``metadata``.
    ``arriving``     packets from elsewhere to any address of this host: see ``ports``.
    ``leaving``      packets from this host to any of its own addresses: see ``ports``. A process that speaks from a
                     loopback address reaches what ``lending`` has lent an address to, and no other port.
    ``lending``      packets of a connection from the loopback to a port in ``loopback4`` or ``loopback4_at`` bear
                     ``STAND_IN4`` as their source, since the kernel sends nothing from the loopback out by
                     another link. This comes between connection tracking, which knows the true source, and
                     ``leaving``; then ``published`` puts this host's address there. For ::1 the same.
    ``answering``    the answers go to this host's own address and port again, which connection tracking had just
                     replaced: the kernel takes nothing for the loopback from another link, and looks for
                     a socket already, which might be one that speaks to the container directly.
    ``returning``    once the kernel has taken them, they go to the process.
    ``sources``      as packets leave: see ``published`` and ``outgoing``.
    ``forwarding``   what this host passes on. Nothing new reaches a link in ``closed`` but published ports and what
                     comes from within the network (``entering``); a link in ``routed`` is open to the outside
                     and closed to other containers' (``private``); from a link in ``internal`` nothing goes
                     anywhere but within (``inward``).
    ``separating``   what is for a container with an ingress policy (``separate4``) comes from its own bridge, or
                     from a link that no such container is behind: see ``separate``.
    ``visiting``     what is for this host itself: from a link in ``no_host`` only what ``visitors`` lets pass,
                     which is DNS and echo requests at the address of the link itself.

Chains that those use
    ``senders``      on a link in ``sourced`` (a ptp container's) only its own addresses may be sources.
    ``metadata``     from a link in ``no_metadata`` the clouds' metadata services and all of 169.254.0.0/16 cannot be
                     reached, but for DNS, which some clouds serve there.
    ``separate``     lets packets of the same link pass (``same``), but to an isolated container (``isolated4``), and
                     drops those of other links in ``policed``.
    ``ports``        sends a connection to a published port on to its container. First the ports of one host address
                     (``ports4_at``), then those of all (``ports4``).
    ``published``    gives such a connection this host as its source where its answers would otherwise go past
                     this host: it was lent one (and may go nowhere but out by the container's link), or it
                     came in by the link that the container is behind, from a sibling (``hairpin4``), or from the
                     container itself (``self4``), or it is to be so for all (``masquerade_all4``). Where
                     the kernel shows bridged packets to these rules (br_netfilter), a sibling's answers
                     pass them too and its address may stay, as it does: such a packet came in by no link.
    ``outgoing``     gives connections of the containers in ``masquerade4`` this host's address, but to
                     multicast groups and within their network (``local4``).

The table ``bridge weft`` has one chain that frames enter by, ``frames``, before the bridge has learned anything from
them. Nobody takes a container for a router (CVE-2020-10749): router advertisements and redirects from a
port in ``attached`` are dropped. A port in ``stationed`` sends with the MAC address in ``stations`` alone
(``origin``), and one in ``addressed`` (``contents``) with its own IP addresses alone, in IPv4, IPv6 and ARP alone:
no VLAN tags unless in ``trunks``, no DHCP server's answers, no ARP (``arps``) or neighbour advertisement
(``advertised``) for an address or a MAC address that is not its own. Link-layer addresses within neighbour discovery
are looked at where they must stand first (RFC 4861, 4.3 and 4.4), and what a fragment hides the receiver ignores (RFC
6980). Nearly all that a checked port sends is its own by one look-up (``own4``, ``own6``), after which TCP is let go
and the rest goes through ``sent4`` or ``sent6``.

Priorities are those that other software expects (dstnat, srcnat, raw): whoever's rule decides first about a
connection's address decides, and weft's rules look only for weft's ports and containers.
Sources: nft(8), linux/netfilter_ipv4.h, the semantics of the reference plugins ``portmap`` and ``bridge``.
"""

from __future__ import annotations

MASQUERADE4 = "masquerade4"
"""Containers' IPv4 addresses whose outgoing connections take the host's address: ``(address,)``."""
MASQUERADE6 = "masquerade6"
"""The same for IPv6."""
LOCAL4 = "local4"
"""From where to where not to masquerade: ``(container's address or subnet, subnet)``.

One element for each container, so that networks that share a subnet do not share an element.
"""
LOCAL6 = "local6"
"""The same for IPv6."""

PORTS4 = "ports4"
"""Ports of every host address: ``(protocol, host port)`` to ``(container's address, container's port)``."""
PORTS6 = "ports6"
"""The same for IPv6."""
PORTS4_AT = "ports4_at"
"""Ports of one host address: ``(host's address, protocol, host port)`` to ``(address, port)``; tried first."""
PORTS6_AT = "ports6_at"
"""The same for IPv6."""

LOOPBACK4 = "loopback4"
"""Those of the ports of every host address that processes reach from 127.0.0.1: ``(protocol, host port)``."""
LOOPBACK6 = "loopback6"
"""The same for ::1."""
LOOPBACK4_AT = "loopback4_at"
"""Ports of one loopback address alone: ``(host's address, protocol, host port)``."""
LOOPBACK6_AT = "loopback6_at"
"""The same for ::1."""
STAND_IN4 = "192.0.0.8"
"""The source that packets of a process at 127.0.0.1 bear within this host: the dummy address of RFC 7600."""
STAND_IN6 = "100:0:0:1::8"
"""The same for ::1, of the dummy prefix of RFC 9780."""
HAIRPIN4 = "hairpin4"
"""Containers and the host's link that leads to them: ``(bridge or host's end of the veth pair, address)``."""
HAIRPIN6 = "hairpin6"
"""The same for IPv6."""
SELF4 = "self4"
"""Containers that connect to themselves by a published port: ``(address, the same address)``."""
SELF6 = "self6"
"""The same for IPv6."""
MASQUERADE_ALL4 = "masquerade_all4"
"""Containers that see this host as the source of every connection to a published port: ``(address,)``."""
MASQUERADE_ALL6 = "masquerade_all6"
"""The same for IPv6."""
PORTS = frozenset({PORTS4, PORTS6, PORTS4_AT, PORTS6_AT, LOOPBACK4, LOOPBACK6, LOOPBACK4_AT, LOOPBACK6_AT})
"""The collections in which an element is a port of the host."""

CLOSED = "closed"
"""Links that nothing new is forwarded to, but to published ports: ``(bridge or host's end of the veth pair,)``."""
ROUTED = "routed"
"""Links that only other containers' links cannot reach: ``(link,)``."""
PRIVATE = "private"
"""The links of closed and routed networks, which ``routed`` ones are closed to: ``(link,)``."""
INTERNAL = "internal"
"""Links from which nothing is forwarded but within the network: ``(link,)``."""
WITHIN = "within"
"""Links of one network: ``(incoming link, outgoing link)``; for a bridge the same twice."""
WITHIN4 = "within4"
"""The subnets of a link's own network, for networks without a bridge: ``(link, subnet)``."""
WITHIN6 = "within6"
"""The same for IPv6."""
NO_METADATA = "no_metadata"
"""Links from which metadata services and link-local addresses cannot be reached: ``(link,)``."""
NO_HOST = "no_host"
"""Links from which this host offers DNS and nothing else: ``(link,)``."""
SOURCED = "sourced"
"""Links whose packets' sources are looked at: ``(link,)``."""
SOURCES4 = "sources4"
"""The addresses they may have: ``(link, address)``."""
SOURCES6 = "sources6"
"""The same for IPv6."""

POLICED = "policed"
"""Links of the host that containers with an ingress policy are behind: ``(link,)``."""
SAME = "same"
"""The same links, as where a packet came from and where it goes: ``(link, the same link)``."""
SEPARATE4 = "separate4"
"""Containers that other policed links cannot reach: ``(link, address)``."""
SEPARATE6 = "separate6"
"""The same for IPv6."""
ISOLATED4 = "isolated4"
"""Containers that their own link's others cannot reach either: ``(link, address)``."""
ISOLATED6 = "isolated6"
"""The same for IPv6."""

ATTACHED = "attached"
"""Bridge ports that no router is behind: ``(port,)``. This and all that follow are in ``bridge weft``."""
STATIONED = "stationed"
"""Bridge ports that send from known MAC addresses alone: ``(port,)``."""
STATIONS = "stations"
"""Those MAC addresses: ``(port, MAC)``."""
ADDRESSED = "addressed"
"""Bridge ports that send from known IP addresses alone: ``(port,)``."""
OWN4 = "own4"
"""Those addresses, each with the MAC address that it is sent from: ``(port, MAC, address)``."""
OWN6 = "own6"
"""The same for IPv6."""
CLAIMS6 = "claims6"
"""The IPv6 addresses as numbers: ``(port, address)``; older nftables have no name for an advertisement's target."""
LINK_ADDRESSES = "link_addresses"
"""The same MAC addresses as numbers, for the options of neighbour discovery, which nftables has no name for."""
TRUNKS = "trunks"
"""Bridge ports that may send tagged frames: ``(port,)``; the bridge itself knows which tags."""

BASE = """\
table inet weft {
	set masquerade4 { type ipv4_addr; }
	set masquerade6 { type ipv6_addr; }
	set local4 { type ipv4_addr . ipv4_addr; flags interval; }
	set local6 { type ipv6_addr . ipv6_addr; flags interval; }
	map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
	map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
	map ports4_at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
	map ports6_at { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
	set loopback4 { type inet_proto . inet_service; }
	set loopback6 { type inet_proto . inet_service; }
	set loopback4_at { type ipv4_addr . inet_proto . inet_service; }
	set loopback6_at { type ipv6_addr . inet_proto . inet_service; }
	set hairpin4 { type ifname . ipv4_addr; }
	set hairpin6 { type ifname . ipv6_addr; }
	set self4 { type ipv4_addr . ipv4_addr; }
	set self6 { type ipv6_addr . ipv6_addr; }
	set masquerade_all4 { type ipv4_addr; }
	set masquerade_all6 { type ipv6_addr; }
	set closed { type ifname; }
	set routed { type ifname; }
	set private { type ifname; }
	set internal { type ifname; }
	set within { type ifname . ifname; }
	set within4 { type ifname . ipv4_addr; flags interval; }
	set within6 { type ifname . ipv6_addr; flags interval; }
	set no_metadata { type ifname; }
	set no_host { type ifname; }
	set sourced { type ifname; }
	set sources4 { type ifname . ipv4_addr; }
	set sources6 { type ifname . ipv6_addr; }
	set policed { type ifname; }
	set same { type ifname . ifname; }
	set separate4 { type ifname . ipv4_addr; }
	set separate6 { type ifname . ipv6_addr; }
	set isolated4 { type ifname . ipv4_addr; }
	set isolated6 { type ifname . ipv6_addr; }

	chain senders {
		iifname . ip saddr @sources4 return
		iifname . ip6 saddr @sources6 return
		ip6 saddr :: meta l4proto ipv6-icmp return
		drop
	}

	chain metadata {
		meta l4proto { tcp, udp } th dport 53 return
		ip daddr { 100.100.100.200, 169.254.0.0/16 } fib daddr . iif type != local drop
		ip6 daddr { fd00:ec2::254, fd20:ce::254 } drop
	}

	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iif "lo" accept
		ip daddr 127.0.0.0/8 drop
		ip saddr 127.0.0.0/8 drop
		ip6 daddr ::1 drop
		ip6 saddr ::1 drop
		iifname @sourced jump senders
		iifname @no_metadata goto metadata
	}

	chain inward {
		iifname . oifname @within accept
		iifname . ip daddr @within4 accept
		iifname . ip6 daddr @within6 accept
		drop
	}

	chain entering {
		ct status dnat accept
		goto inward
	}

	chain forwarding {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		iifname @internal goto inward
		oifname @closed goto entering
		oifname @routed iifname @private goto entering
	}

	chain separate {
		iifname . oifname != @same iifname @policed drop
		iifname . oifname != @same return
		oifname . ip daddr @isolated4 drop
		oifname . ip6 daddr @isolated6 drop
	}

	chain separating {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		oifname . ip daddr @separate4 goto separate
		oifname . ip6 daddr @separate6 goto separate
	}

	chain visitors {
		ct state established,related accept
		meta l4proto { tcp, udp } th dport 53 fib daddr . iif type local accept
		meta l4proto { icmp, ipv6-icmp } fib daddr . iif type local accept
		icmpv6 type { nd-neighbor-solicit, nd-router-solicit } accept
		drop
	}

	chain visiting {
		type filter hook input priority filter; policy accept;
		iifname @no_host goto visitors
	}

	chain ports {
		dnat ip to ip daddr . meta l4proto . th dport map @ports4_at
		dnat ip to meta l4proto . th dport map @ports4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
		dnat ip6 to meta l4proto . th dport map @ports6
	}

	chain arriving {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local goto ports
	}

	chain lend4 {
		ip daddr . meta l4proto . th dport @loopback4_at ip saddr set 192.0.0.8 return
		meta l4proto . th dport @loopback4 ip saddr set 192.0.0.8
	}

	chain lend6 {
		ip6 daddr . meta l4proto . th dport @loopback6_at ip6 saddr set 100:0:0:1::8 return
		meta l4proto . th dport @loopback6 ip6 saddr set 100:0:0:1::8
	}

	chain lending {
		type filter hook output priority mangle; policy accept;
		ct status & (confirmed | dnat) == confirmed accept
		oif "lo" ip saddr 127.0.0.0/8 ct direction original goto lend4
		oif "lo" ip6 saddr ::1 ct direction original goto lend6
	}

	chain leaving {
		type nat hook output priority -100; policy accept;
		ip saddr 127.0.0.0/8 return
		ip6 saddr ::1 return
		fib daddr type local goto ports
	}

	chain as_sent {
		tcp dport set ct reply proto-dst
		udp dport set ct reply proto-dst
		ip daddr set ct reply ip daddr
		ip6 daddr set ct reply ip6 daddr
	}

	chain answering {
		type filter hook prerouting priority dstnat + 10; policy accept;
		ct status ! dnat accept
		iif != "lo" ip daddr 127.0.0.0/8 ct direction reply goto as_sent
		iif != "lo" ip6 daddr ::1 ct direction reply goto as_sent
	}

	chain as_asked {
		tcp dport set ct original proto-src
		udp dport set ct original proto-src
		ip daddr set ct original ip saddr
		ip6 daddr set ct original ip6 saddr
	}

	chain returning {
		type filter hook input priority 110; policy accept;
		ct status ! dnat accept
		iif != "lo" ct direction reply ct original ip saddr 127.0.0.0/8 goto as_asked
		iif != "lo" ct direction reply ct original ip6 saddr ::1 goto as_asked
	}

	chain published {
		ip saddr 192.0.0.8 oifname . ip daddr != @hairpin4 drop
		ip6 saddr 100:0:0:1::8 oifname . ip6 daddr != @hairpin6 drop
		ip saddr 192.0.0.8 masquerade
		ip6 saddr 100:0:0:1::8 masquerade
		iifname . ip daddr @hairpin4 masquerade
		iifname . ip6 daddr @hairpin6 masquerade
		ip saddr . ip daddr @self4 masquerade
		ip6 saddr . ip6 daddr @self6 masquerade
		ip daddr @masquerade_all4 masquerade
		ip6 daddr @masquerade_all6 masquerade
	}

	chain outgoing {
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		ip saddr . ip daddr @local4 return
		ip6 saddr . ip6 daddr @local6 return
		masquerade
	}

	chain sources {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat jump published
		ip saddr @masquerade4 goto outgoing
		ip6 saddr @masquerade6 goto outgoing
	}
}

table bridge weft {
	set attached { type ifname; }
	set stationed { type ifname; }
	set stations { type ifname . ether_addr; }
	set addressed { type ifname; }
	set own4 { type ifname . ether_addr . ipv4_addr; }
	set own6 { type ifname . ether_addr . ipv6_addr; }
	set claims6 { typeof iifname . @th,64,128; }
	set link_addresses { typeof iifname . @th,208,48; }
	set trunks { type ifname; }

	chain origin {
		iifname . ether saddr != @stations drop
		meta protocol arp iifname . arp saddr ether != @stations drop
	}

	chain arps {
		arp htype != 1 drop
		arp ptype != ip drop
		arp hlen != 6 drop
		arp plen != 4 drop
		arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ether . arp saddr ip @own4 accept
		drop
	}

	chain sent4 {
		meta l4proto tcp accept
		udp sport 67 udp dport 68 drop
		icmp type redirect drop
	}

	chain advertised {
		iifname . @th,64,128 != @claims6 drop
		@th,192,16 != 0x0201 drop
		iifname . @th,208,48 != @link_addresses drop
	}

	chain solicited {
		@th,192,16 != 0x0101 drop
		iifname . @th,208,48 != @link_addresses drop
	}

	chain sent6 {
		meta l4proto tcp accept
		udp sport 547 udp dport 546 drop
		icmpv6 type { nd-router-advert, nd-redirect } iifname @attached drop
		icmpv6 type nd-neighbor-advert goto advertised
		icmpv6 type nd-neighbor-solicit goto solicited
		icmpv6 type nd-router-solicit @th,64,16 != 0x0101 drop
		icmpv6 type nd-router-solicit iifname . @th,80,48 != @link_addresses drop
	}

	chain contents {
		ether type vlan iifname @trunks accept
		ether type arp goto arps
		ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		ether type ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @claims6 accept
		ether type ip6 ip6 saddr :: icmpv6 type { 131, 132, 143, nd-router-solicit } accept
		drop
	}

	chain frames {
		type filter hook prerouting priority dstnat; policy accept;
		ether type ip iifname . ether saddr . ip saddr @own4 goto sent4
		ether type ip6 iifname . ether saddr . ip6 saddr @own6 goto sent6
		meta protocol ip6 icmpv6 type { nd-router-advert, nd-redirect } iifname @attached drop
		iifname @stationed jump origin
		iifname @addressed goto contents
	}
}
"""
"""What ``Ruleset.install`` takes."""
