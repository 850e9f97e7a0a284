"""The rules that weft installs once on a host, and the sets and maps that they look into.

There is one table, ``inet weft`` (``nft list table inet weft``), and its rules are the same whether one
container runs or ten thousand. What belongs to a container is an element of a set or map, with the mark of
its attachment as the comment, so a packet costs the same few look-ups however many there are.

Chains that packets enter by
    ``guard``        before anything else: what arrives from a wire (or a container) and claims to come from or go to
                     127.0.0.0/8 is dropped. Ports published on 127.0.0.1 need ``route_localnet`` on the
                     bridge, which takes away the kernel's own refusal (CVE-2020-8558). It is also what
                     keeps a port published on 127.0.0.1 alone from being reached from elsewhere.
    ``arriving``     packets from elsewhere to any address of this host: see ``ports``.
    ``leaving``      packets from this host to any of its own addresses: see ``ports``. Not to [::1]: a
                     packet from ::1 cannot leave the loopback, so such a port is refused at once, and
                     whoever asked for "localhost" goes on to 127.0.0.1.
    ``sources``      as packets leave: see ``published`` and ``outgoing``.

Chains that those use
    ``ports``        sends a connection to a published port on to its container. First the ports of one host address
                     (``ports4_at``), then those of all (``ports4``).
    ``published``    gives such a connection this host as its source where its answers would otherwise go past
                     this host: it came from 127.0.0.1 (``snat4``), or it came in by the link that the
                     container is behind, from a sibling (``hairpin4``), or from the container itself
                     (``self4``), or it is to be so for all (``masquerade_all4``). Where the kernel shows
                     bridged packets to these rules (br_netfilter), a sibling's answers pass them too
                     and its address may stay, as it does: such a packet came in by no link.
    ``outgoing``     gives connections of the containers in ``masquerade4`` this host's address, but to
                     multicast groups and within their network (``local4``).

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

SNAT4 = "snat4"
"""Containers that 127.0.0.1 may connect to by a published port: ``(address,)``. There is no such thing for ::1."""
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
	set snat4 { type ipv4_addr; }
	set hairpin4 { type ifname . ipv4_addr; }
	set hairpin6 { type ifname . ipv6_addr; }
	set self4 { type ipv4_addr . ipv4_addr; }
	set self6 { type ipv6_addr . ipv6_addr; }
	set masquerade_all4 { type ipv4_addr; }
	set masquerade_all6 { type ipv6_addr; }

	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname != "lo" ip daddr 127.0.0.0/8 drop
		iifname != "lo" ip saddr 127.0.0.0/8 drop
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

	chain leaving {
		type nat hook output priority -100; policy accept;
		ip6 daddr ::1 return
		fib daddr type local goto ports
	}

	chain published {
		ip saddr 127.0.0.0/8 ip daddr @snat4 masquerade
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
"""
"""What ``Ruleset.install`` takes."""
