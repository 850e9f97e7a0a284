"""Network lists as projects ship or document them: their keys and types, with the values shortened.

A list with one plugin is a configuration as it is delegated to that plugin, for example by flannel.
"""

from __future__ import annotations

from typing import Any

Conf = dict[str, Any]

DEFAULT: list[Conf] = [{"dst": "0.0.0.0/0"}]
PORTMAP: Conf = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH: Conf = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def network(name: str, version: str | None, *plugins: Conf, **keys: Any) -> Conf:
    return {"name": name, **({} if version is None else {"cniVersion": version}), **keys, "plugins": list(plugins)}


def pool(subnet: str, **keys: Any) -> Conf:
    return {"type": "host-local", "subnet": subnet, **keys}


def ranges(*subnets: str, **keys: Any) -> Conf:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets], **keys}


def bridge(link: str, ipam: Conf, **keys: Any) -> Conf:
    return {"type": "bridge", "bridge": link, "ipam": ipam, **keys}


SHIPPED: dict[str, Conf] = {
    "podman": network(
        "podman", "0.4.0",
        bridge("cni-podman0", {"type": "host-local", "routes": DEFAULT, "ranges": [[
            {"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}, isGateway=True, ipMasq=True, hairpinMode=True),
        PORTMAP, {"type": "firewall", "backend": ""}, {"type": "tuning"},
    ),
    "podman-created": network(
        "mynet", "0.4.0",
        bridge("cni-podman1", ranges("10.89.0.0/24", routes=DEFAULT), isGateway=True, ipMasq=True, hairpinMode=True,
               vlan=0, mtu=0),
        PORTMAP, {"type": "firewall", "backend": "", "ingressPolicy": "same-bridge"},
        {"type": "tuning", "capabilities": {"mac": True}}, args={"podman_labels": {"a": "b"}},
    ),
    "cri-o": network(
        "crio", "1.0.0",
        bridge("cni0", ranges("10.85.0.0/16", "1100:200::/24", routes=[*DEFAULT, {"dst": "1100:200::1/24"}]),
               isGateway=True, ipMasq=True, hairpinMode=True),
    ),
    "cri-o-ipv4": network(
        "crio", "1.0.0", bridge("cni0", ranges("10.85.0.0/16", routes=DEFAULT), isGateway=True, ipMasq=True,
                                hairpinMode=True)),
    "containerd": network(
        "containerd-net", "1.0.0",
        bridge("cni0", ranges("10.88.0.0/16", "2001:4860:4860::/64", routes=[*DEFAULT, {"dst": "::/0"}]),
               isGateway=True, ipMasq=True, promiscMode=True),
        {**PORTMAP, "externalSetMarkChain": "KUBE-MARK-MASQ"},
    ),
    "nerdctl": network(
        "bridge", "1.0.0",
        bridge("nerdctl0", {"type": "host-local", "routes": DEFAULT, "ranges": [[
            {"gateway": "10.4.0.1", "subnet": "10.4.0.0/24"}]]}, isGateway=True, ipMasq=True, hairpinMode=True),
        PORTMAP, {"type": "firewall", "ingressPolicy": "same-bridge"}, {"type": "tuning"},
        nerdctlID="17f29b073143", nerdctlLabels={"nerdctl/default-network": "true"},
    ),
    "buildkit": network(
        "buildkit", "1.0.0", {"type": "loopback"},
        bridge("buildkit0", pool("10.10.0.0/16"), isDefaultGateway=True, forceAddress=False, ipMasq=True,
               hairpinMode=True)),
    "flannel": network(
        "cbr0", "0.3.1",
        {"type": "bridge", "hairpinMode": True, "ipMasq": False, "isDefaultGateway": True, "isGateway": True,
         "mtu": 1450, "ipam": ranges("10.244.1.0/24", routes=[{"dst": "10.244.0.0/16"}])},
        PORTMAP,
    ),
    "k3s": network(
        "cbr0", "1.0.0",
        {"type": "bridge", "forceAddress": True, "hairpinMode": True, "isDefaultGateway": True, "isGateway": True,
         "ipMasq": False, "mtu": 1450, "ipam": ranges("10.42.0.0/24", "2001:cafe:42::/64",
                                                      routes=[{"dst": "10.42.0.0/16"}, {"dst": "2001:cafe:42::/56"}])},
        PORTMAP, BANDWIDTH,
    ),
    "calico": network(
        "k8s-pod-network", "0.3.1",
        {"type": "calico", "datastore_type": "kubernetes", "mtu": 0, "nodename_file_optional": False,
         "ipam": {"type": "calico-ipam", "assign_ipv4": "true"}, "policy": {"type": "k8s"}},
        {**PORTMAP, "snat": True}, BANDWIDTH,
    ),
    "canal": network(
        "k8s-pod-network", "0.3.1",
        {"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCidr"}},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}, BANDWIDTH,
    ),
    "kubernetes-hostport": network(
        "k8s-pod-network", "0.4.0", {"type": "calico"},
        {**PORTMAP, "externalSetMarkChain": "KUBE-MARK-MASQ"}, BANDWIDTH),
    "cilium": network("portmap", "0.3.1", {"type": "cilium-cni", "enable-debug": False}, PORTMAP),
    "cilium-generic-veth": network(
        "generic-veth", "0.3.1",
        {"type": "ptp", "mtu": 1460, "ipam": pool("10.4.0.0/24", routes=DEFAULT)},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}, {"type": "cilium-cni"}),
    "kindnet": network(
        "kindnet", "0.3.1",
        {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ranges(
            "10.244.0.0/24", "fd00:10:244::/64", dataDir="/run/cni-ipam-state", routes=[*DEFAULT, {"dst": "::/0"}])},
        PORTMAP,
    ),
    "gke": network(
        "gke-pod-network", "0.3.1",
        {"type": "ptp", "mtu": 1460, "ipam": {"type": "host-local", "routes": DEFAULT, "ranges": [[
            {"subnet": "10.8.0.0/24"}]]}}, PORTMAP, BANDWIDTH),
    "aks": network(
        "azure", "0.3.0",
        {"type": "azure-vnet", "mode": "transparent", "ipsToRouteViaHost": ["169.254.20.10"],
         "ipam": {"type": "azure-vnet-ipam"}},
        {**PORTMAP, "snat": True, "externalSetMarkChain": "KUBE-MARK-MASQ"},
    ),
    "aks-kubenet": network(
        "kubenet", "0.1.0",
        bridge("cbr0", {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": DEFAULT},
               mtu=1500, addIf="eth0", isGateway=True, ipMasq=False, promiscMode=True, hairpinMode=False)),
    "eks": network(
        "aws-cni", "0.4.0",
        {"type": "aws-cni", "vethPrefix": "eni", "mtu": "9001", "podSGEnforcingMode": "strict"},
        {"type": "egress-cni", "mtu": "9001", "enabled": "false", "ipam": pool("169.254.172.0/22")},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}, disableCheck=True,
    ),
    "multus-macvlan": network(
        "macvlan-conf", "0.3.0",
        {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": pool(
            "192.168.1.0/24", rangeStart="192.168.1.200", rangeEnd="192.168.1.216", routes=DEFAULT,
            gateway="192.168.1.1")}),
    "multus-ipvlan-static": network(
        "ipvlan-conf", "0.3.1",
        {"type": "ipvlan", "master": "eth0", "mode": "l2", "mtu": 1500, "ipam": {
            "type": "static", "addresses": [{"address": "192.168.1.9/24", "gateway": "192.168.1.1"}],
            "routes": [{"dst": "10.9.0.0/16", "gw": "192.168.1.1"}], "dns": {"nameservers": ["192.168.1.1"]}}}),
    "multus-vlan-layer-2": network(
        "vlan-conf", "0.3.1",
        {"type": "macvlan", "capabilities": {"mac": True, "ips": True}, "master": "eth0", "ipam": {}}),
    "sriov": network(
        "sriov-net", "0.3.1",
        {"type": "host-local", "ipam": pool("10.56.217.0/24", rangeStart="10.56.217.171", rangeEnd="10.56.217.181",
                                            routes=DEFAULT, gateway="10.56.217.1")}),
    "nomad": network(
        "nomad", "0.4.0", {"type": "loopback"},
        bridge("nomad", ranges("172.26.64.0/20", routes=DEFAULT, dataDir="/var/run/cni"), ipMasq=True, isGateway=True,
               forceAddress=True, hairpinMode=False),
        {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "NOMAD-ADMIN"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ),
    "weave": network(
        "weave", "0.3.0", {"name": "weave", "type": "weave-net", "hairpinMode": True},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}),
    "kube-router": network(
        "mynet", "0.3.0",
        bridge("kube-bridge", pool("10.1.1.0/24"), name="kubernetes", isDefaultGateway=True, hairpinMode=True),
        {"type": "portmap", "capabilities": {"snat": True, "portMappings": True}}),
    "openshift-sdn": network(
        "openshift-sdn", "0.2.0",
        {"type": "host-local", "ipam": pool("10.128.0.0/23", routes=[
            {"dst": "0.0.0.0/0", "gw": "10.128.0.1"}, {"dst": "224.0.0.0/4"}, {"dst": "10.128.0.0/14"}])}),
    "openshift-loopback": network("lo", "0.3.1", {"type": "loopback"}),
    "antrea": network(
        "antrea", "0.3.0", {"type": "antrea", "ipam": {"type": "host-local"}}, PORTMAP, BANDWIDTH),
    "antrea-ipam": network(
        "antrea", "0.3.0",
        {"type": "host-local", "ipam": {"type": "host-local", "ranges": [
            [{"subnet": "10.10.0.0/24", "gateway": "10.10.0.1"}], [{"subnet": "fd10::/64", "gateway": "fd10::1"}]]}}),
    "kubevirt-bridge": network(
        "br1-net", "0.3.1",
        bridge("br1", {}, macspoofchk=True, vlan=100, preserveDefaultVlan=False),
        {"type": "tuning", "mac": "02:00:00:00:00:2a"}),
    "cnv-bridge-trunk": network(
        "br2-net", "0.3.1", bridge("br2", {}, vlanTrunk=[{"minID": 200, "maxID": 202}, {"id": 42}],
                                   disableContainerInterface=True)),
    "cni-specification": network(
        "dbnet", "1.1.0",
        bridge("cni0", pool("10.1.0.0/16", gateway="10.1.0.1", routes=DEFAULT),
               keyA=["some more", "plugin specific", "configuration"], dns={"nameservers": ["10.1.0.1"]}),
        {"type": "tuning", "capabilities": {"mac": True}, "sysctl": {"net.core.somaxconn": "500"}}, PORTMAP,
        cniVersions=["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    ),
    "minikube": network(
        "bridge", "0.4.0",
        bridge("bridge", pool("10.244.0.0/16"), addIf="true", isDefaultGateway=True, forceAddress=False, ipMasq=True,
               hairpinMode=True), PORTMAP, {"type": "firewall"}),
    "firecracker": network(
        "fcnet", "0.4.0",
        {"type": "ptp", "ipMasq": True, "ipam": pool("192.168.127.0/24", resolvConf="/etc/resolv.conf")},
        {"type": "firewall"}, {"type": "tc-redirect-tap"}),
    "rkt": network(
        "default", None,
        {"type": "ptp", "ipMasq": True, "ipam": pool("172.16.28.0/24", routes=DEFAULT)}),
    "mesos": network(
        "mesos-bridge", "0.3.0",
        bridge("m-b", pool("192.168.1.0/24", routes=DEFAULT), isGateway=True, ipMasq=True)),
}  # fmt: skip
