"""No module but the transport opens netlink sockets or packs headers; constants are the kernel's."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.kernel.netlink import constants

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("weft", "ipam", "store", "discovery", "cluster", "cni_plugin")
TRANSPORT = "weft/kernel/netlink/transport.py"
CONSTANTS = "weft/kernel/netlink/constants.py"
SECCOMP = "weft/confinement.py"
"""Names the socket families that daemons may open."""
NLMSGHDR = re.compile(r"[=<>@!]?(?:IHHII|LHHLL|I2H2I)")


def breaches(source: str) -> Iterator[str]:
    """Lines that open a netlink socket, or contain the layout of ``struct nlmsghdr``."""
    for node in ast.walk(ast.parse(source)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.ImportFrom) and any(alias.name == "AF_NETLINK" for alias in node.names):
            name = "AF_NETLINK"
        if name == "AF_NETLINK":
            yield f"{node.lineno}: AF_NETLINK"  # type: ignore[attr-defined]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NLMSGHDR.match(node.value):
            yield f"{node.lineno}: {node.value}"


def test_no_other_module_uses_netlink_directly() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name not in (TRANSPORT, CONSTANTS, SECCOMP):
                source = path.read_text(encoding="utf-8")
                if "AF_NETLINK" in source or "HH" in source:  # parsing all takes seconds
                    found += [f"{name}:{line}" for line in breaches(source)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from _socket import AF_NETLINK",
        "import socket\nsocket.socket(socket.AF_NETLINK, 3)",
        "import struct\nstruct.pack('=IHHII', 16, 1, 5, 1, 0)",
        "HEADER = Struct('=IHHIIBBH')",
    ],
)
def test_violations_are_found(source: str) -> None:
    assert list(breaches(source))


def test_the_transport_itself_is_found() -> None:
    assert list(breaches((ROOT / TRANSPORT).read_text(encoding="utf-8")))


HEADERS = {
    "sys/socket.h": "AF_ SOCK_ MSG_ SOL_SOCKET SO_",
    "linux/sockios.h": "SIOC",
    "linux/if_ether.h": "ETH_",
    "linux/in.h": "IPPROTO_",
    "linux/netlink.h": "NETLINK_ NLMSG_ NLMSGERR_ NLM_ NLA_",
    "linux/rtnetlink.h": "RTM_ RTMGRP_ RTNLGRP_ RTN_ RTNH_ RT_ RTA_ RTAX_ RTEXT_",
    "linux/if.h": "IFF_ IF_OPER_",
    "linux/if_link.h": "IFLA_ IN6_",
    "linux/if_bridge.h": "BRIDGE_ BR_STATE_",
    "linux/if_addr.h": "IFA_",
    "linux/neighbour.h": "NDA_ NUD_ NTF_",
    "linux/nexthop.h": "NHA_",
    "linux/genetlink.h": "GENL_ CTRL_",
    "linux/wireguard.h": "WG_ WGDEVICE_ WGPEER_ WGALLOWEDIP_",
    "linux/xfrm.h": "XFRM_ XFRMA_",
    "linux/fib_rules.h": "FR_",
    "linux/pkt_sched.h": "TC_H_ TC_LINKLAYER_",
    "linux/pkt_cls.h": "TC_U32_ TC_ACT_",
    "linux/tc_act/tc_mirred.h": "TCA_",
    "linux/sock_diag.h": "SOCK_DIAG_",
    "linux/inet_diag.h": "INET_DIAG_",
    "linux/netfilter.h": "NFPROTO_ NF_",
    "linux/netfilter/nfnetlink.h": "NFNETLINK_ NFNL_ NFNLGRP_",
    "linux/netfilter/nf_tables.h": "NFT_ NFTA_",
    "linux/netfilter/nfnetlink_conntrack.h": "CTA_ IPCTNL_",
    "linux/netfilter/nf_conntrack_tcp.h": "TCP_CONNTRACK_",
}
NOT_EXPORTED = (
    "CTA_FILTER",
    "NFTNL_",
    "NFT_TABLE_F_",
    "NFTA_TABLE_OWNER",
    "NF_DROP",
    "NLA_TYPE_MASK",
    "SOL_NETLINK",
    "TCPF_",
)
"""Not in the UAPI headers, only in newer ones, or (NLA_TYPE_MASK) of another width there."""


def test_constants_have_the_kernel_s_values(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/nexthop.h").exists():
        pytest.skip("no compiler, or no headers of the kernel")
    prefixes = tuple(prefix for row in HEADERS.values() for prefix in row.split())
    ours = {name: value for name, value in vars(constants).items() if name.isupper() and isinstance(value, int)}
    assert all(name.startswith((*prefixes, *NOT_EXPORTED)) for name in ours)
    checked = {name: value for name, value in ours.items() if not name.startswith(NOT_EXPORTED)}
    lines = [f"#include <{header}>" for header in HEADERS]
    # Compared as unsigned values: some headers declare them as signed.
    lines += [f'_Static_assert((unsigned){name} == (unsigned){value}, "{name}");' for name, value in checked.items()]
    source = tmp_path / "constants.c"
    source.write_text("#define _GNU_SOURCE\n" + "\n".join(lines) + "\n")
    done = subprocess.run(
        [compiler, "-fsyntax-only", str(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
