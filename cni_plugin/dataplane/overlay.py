"""Overlay networks in the table ``inet weft``: VXLAN packets of known peers alone, none in clear where a network is
encrypted, and what comes by the uplink from networks with ``direct``. Sources: nft(8), RFC 7348.
"""

from __future__ import annotations

from weft.kernel.schema import Chain, Rule, Set, rules, sets

OVERLAY_LINKS, OVERLAY_VNIS = "overlay_links", "overlay_vnis"
OVERLAY_ENCRYPTED_VNIS = "overlay_encrypted_vnis"
OVERLAY_IPSEC_VNIS = "overlay_ipsec_vnis"
OVERLAY_PEERS4, OVERLAY_PEERS6 = "overlay_peers4", "overlay_peers6"
DIRECT_PEERS4, DIRECT_PEERS6 = "direct_peers4", "direct_peers6"
DIRECT_CLOSED4, DIRECT_CLOSED6 = "direct_closed4", "direct_closed6"
DIRECT_ROUTED4, DIRECT_ROUTED6 = "direct_routed4", "direct_routed6"

_INTERVAL = ("interval",)
_VNI = "udp dport . @th,96,24"
"""UDP port and VNI of a VXLAN packet: other programs may use the same port with other VNIs. RFC 7348."""
PACKET = f"meta l4proto udp @th,64,32 0x08000000 {_VNI} @overlay_vnis"
"""Without the flags of a VXLAN header, which the kernel asks for too (``vxlan_rcv``), no look-up is needed."""

SETS = (
    Set(
        OVERLAY_LINKS,
        "ifname",
        "VXLAN links, from which packets may go only to the bridge of the same network and to this host",
        "driver overlay",
    ),
    Set(OVERLAY_VNIS, _VNI, "UDP port and VNI of overlay networks", "driver overlay", typeof=True),
    Set(
        OVERLAY_ENCRYPTED_VNIS,
        _VNI,
        "those of encrypted overlay networks, whose packets pass WireGuard links (wvw*) or IPsec alone",
        "driver overlay with encryption",
        typeof=True,
    ),
    Set(OVERLAY_IPSEC_VNIS, _VNI, "those of them with IPsec", "driver overlay with encryption ipsec", typeof=True),
    *(
        Set(
            f"overlay_peers{v}",
            f"{ip} saddr . {_VNI}",
            "a peer's address, and UDP port and VNI of an overlay network that it takes part in",
            "driver overlay, for each peer",
            typeof=True,
        )
        for v, ip in ((4, "ip"), (6, "ip6"))
    ),
    *sets(
        "direct_closed{v}",
        "{address}",
        "subnets of closed overlay networks of which the uplink leads to a part",
        "driver overlay with direct",
        flags=_INTERVAL,
    ),
    *sets(
        "direct_routed{v}",
        "{address}",
        "the same of networks with isolation routed",
        "driver overlay with direct",
        flags=_INTERVAL,
    ),
    *sets(
        "direct_peers{v}",
        "ifname . {address} . ifname",
        "incoming link, a block of a peer behind it, and the bridge of the same network",
        "driver overlay with direct, for each peer",
        flags=_INTERVAL,
    ),
)

CHAINS = (
    Chain(
        "overlay_decrypted",
        "of encrypted networks, VXLAN packets that came in clear are dropped",
        (
            Rule(f"{_VNI} @overlay_ipsec_vnis meta ipsec exists return", "by ESP"),
            Rule(f"{_VNI} @overlay_ipsec_vnis drop", "in clear"),
            Rule('iifname != "wvw*" drop', "in clear"),
        ),
    ),
    Chain(
        "overlay_encrypted",
        "of encrypted networks, VXLAN packets that would leave in clear are dropped",
        (
            Rule(f"{_VNI} @overlay_ipsec_vnis rt ipsec exists return", "by ESP"),
            Rule(f"{_VNI} @overlay_ipsec_vnis drop", "would leave in clear"),
            Rule('oifname != "wvw*" drop', "would leave in clear"),
        ),
    ),
    Chain(
        "overlay_outer",
        "VXLAN packets of overlay networks: only from their peers, and without connection tracking",
        (
            Rule("iifname @closed_or_routed_links drop", "made by a container"),
            Rule(f"{_VNI} @overlay_encrypted_vnis jump overlay_decrypted", "none in clear"),
            *rules(f"{{ip}} saddr . {_VNI} @overlay_peers{{v}} notrack accept", "from a peer"),
            Rule("drop", "from an unknown address"),
        ),
    ),
    Chain(
        "overlay_to_peer",
        "VXLAN packets of this host's overlay networks are not tracked, and so never translated",
        (
            Rule(f"{_VNI} @overlay_encrypted_vnis jump overlay_encrypted", "none in clear"),
            Rule("notrack", "to a peer"),
        ),
    ),
    Chain(
        "raw_output",
        "VXLAN packets of overlay networks",
        (Rule(f"{PACKET} goto overlay_to_peer", "to a peer"),),
        hook="output",
        priority="raw",
    ),
)
