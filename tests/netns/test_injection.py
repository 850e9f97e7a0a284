"""No text of a configuration becomes part of a rule or a command (CVE-2026-32241, CVE-2021-20206).

Each string is given in each place that takes text. The call is refused, or the rules are those that an
ADD without it makes, and nothing else was made.
"""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

from lab.calls import Weft
from lab.cases import Conf, conf, pool
from lab.ground import rest
from lab.host import Host

CONF = conf(
    "weft", "inject",
    {
        "driver": "bridge", "bridge": "wbr0", "isGateway": True, "ipMasq": True, "portmap": {}, "isolation": "closed",
        "ipam": pool("10.50.0.0/24", routes=[{"dst": "0.0.0.0/0"}]),
        "firewall": {"ingressPolicy": "open"}, "tuning": {"sysctl": {"net.ipv4.conf.eth0.rp_filter": "2"}},
        "dns": {"nameservers": ["192.0.2.1"], "domain": "d", "search": ["s"]},
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
        },
        "args": {"cni": {"mac": "02:00:00:00:00:09"}},
    },
)  # fmt: skip

PLACES: tuple[tuple[str | int, ...], ...] = (
    ("name",), ("driver",), ("bridge",), ("isolation",), ("ipMasqBackend",), ("hostAccess",),
    ("ipam", "type"), ("ipam", "dataDir"), ("ipam", "ranges", 0, 0, "subnet"), ("ipam", "ranges", 0, 0, "gateway"),
    ("ipam", "routes", 0, "dst"), ("ipam", "routes", 0, "gw"),
    ("firewall", "ingressPolicy"), ("firewall", "backend"), ("firewall", "iptablesAdminChainName"),
    ("portmap", "backend"), ("portmap", "externalSetMarkChain"), ("portmap", "conditionsV4"),
    ("tuning", "sysctl", "net.ipv4.conf.eth0.rp_filter"), ("dns", "nameservers", 0), ("dns", "domain"),
    ("dns", "search", 0), ("runtimeConfig", "portMappings", 0, "protocol"),
    ("runtimeConfig", "portMappings", 0, "hostIP"), ("args", "cni", "mac"),
    ("metadata",), ("vlan",),
)  # fmt: skip

TEXTS = (
    "; flush ruleset", '"; add table inet evil; #', "0.0.0.0/0 accept", "@evil", "$(touch /tmp/weft-injected)",
    "|touch /tmp/weft-injected", "--flush", "a\nadd table inet evil", "a\0b", "../../etc/passwd", "\x1b]0;x\x07", "*",
)  # fmt: skip


def with_text(place: tuple[str | int, ...], text: str) -> Conf:
    changed = copy.deepcopy(CONF)
    there: Any = changed
    for step in place[:-1]:
        there = there[step]
    there[place[-1]] = text
    return changed


def rules() -> str:
    """All tables, chains, rules, sets and maps of the host, without elements and handles."""
    listed = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True, timeout=20)
    found = []
    for entry in json.loads(listed.stdout)["nftables"]:
        for value in entry.values():
            value.pop("elem", None)
            value.pop("handle", None)
        if "metainfo" not in entry:
            found.append(json.dumps(entry, sort_keys=True))
    return "\n".join(sorted(found))


def test_text_becomes_no_rule(host: Host) -> None:
    weft, path = Weft(), host.container()
    weft.add(CONF, path)
    usual = rules()
    weft.delete(CONF, path)
    accepted = 0
    for place in PLACES:
        for text in TEXTS:
            bad = with_text(place, text)
            answer = weft("ADD", bad, path)
            if answer.ok:
                accepted += 1
                assert rules() == usual, (place, text)
            else:
                assert answer.code in (2, 6, 7, 101, 103, 105, 106), (place, text, answer)
            weft("DEL", bad, path)
            assert not Path("/tmp/weft-injected").exists(), (place, text)
    weft.collect(CONF)
    assert rest(path) == []
    assert accepted > 0, "nothing was tried: every text was refused"
