"""What etcd is started with."""

from __future__ import annotations

import json

from cluster import etcd_server
from cluster.local import Files, Local


def test_both_of_its_ports_require_certificates() -> None:
    local = Local("n1", "1f", "fd00::1", cluster="c1")
    own = Files("/etc/weft/etcd")
    found = json.loads(etcd_server.configuration(local, own, "n1=https://[fd00::1]:2380", new=True))
    for side, ca in (("client", "ca"), ("peer", "peer-ca")):
        tls = found[f"{side}-transport-security"]
        assert tls["client-cert-auth"] is True
        assert tls["trusted-ca-file"] == f"/etc/weft/etcd/{ca}.pem"
    assert found["listen-client-urls"] == "https://[fd00::1]:2379"
    assert found["listen-peer-urls"] == "https://[fd00::1]:2380"
    assert found["initial-cluster-state"] == "new"
    assert json.loads(etcd_server.configuration(local, own, "", new=False))["initial-cluster-state"] == "existing"


def test_the_unit_has_no_capability() -> None:
    lines = etcd_server.unit("/usr/bin/etcd", "/etc/weft/etcd").splitlines()
    assert "ExecStart=/usr/bin/etcd --config-file /etc/weft/etcd/etcd.conf" in lines
    assert {"CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077"} <= set(lines)
