"""Networks of the cluster as runtimes on this host find them: a CNI network list, and podman's own file.

Both are written by the agent, and only where no other network has the name. The list sorts behind others,
since CRI takes the first of the folder for its pods.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address, ip_network

from cluster.records import Network, block_length, static_range
from cni_plugin.networks import conflists
from cni_plugin.networks.conflists import OWN_KEY, Json, NetworkList
from cni_plugin.networks.create import VERSION
from cni_plugin.wire.plugins import OWN_NAME
from weft import files, identity, overlay
from weft.errors import ConfigProblem, Conflict, StateDamaged, WeftError
from weft.overlay_modes import L2, MODES, VLAN_GATEWAY, parse_vlan_gateway
from weft.section import Section

PREFIX = "zz-"
"""What the name of a list begins with."""
_PODMAN_BYTES = 1 << 20


def network_of(content: Mapping[str, object], identifier: str = "") -> Network:
    """The network that ``create.build`` has made, as it is stored. Raises ConfigProblem."""
    keys = Section(dict(content))
    plugins = keys.sections("plugins")
    raw = keys.items("plugins")
    notes = keys.section(OWN_KEY)
    given = notes.section("cluster")
    name = keys.text("name")
    if len(plugins) != 1 or plugins[0].text("type") != OWN_NAME or plugins[0].text("driver") != "overlay":
        keys.problems.add("plugins must be one, weft with driver overlay")
    try:
        subnets = tuple(map(ip_network, given.texts("subnets")))
        static = tuple(map(ip_network, given.texts("static")))
        gateway = ip_address(given.text("gateway")) if given.text("gateway") else None
    except ValueError as error:
        raise ConfigProblem(f"{OWN_KEY}.cluster: {error}") from error
    if not subnets or len({one.version for one in subnets}) < len(subnets):
        given.problem("subnets", "must be one subnet of IPv4, or of IPv6, or one of each")
    length = given.integer("blockLength", least=8, most=30)
    port = given.integer("port", least=1, most=65535) or overlay.PORT
    file_keys = given.section("keys")
    keys.problems.raise_any()
    lengths = tuple(length if length and one.version == 4 else block_length(one) for one in subnets)
    chosen = {one.version for one in static}
    ranges = (
        static_range(one, block) for one, block in zip(subnets, lengths, strict=True) if one.version not in chosen
    )
    static = (*static, *(one for one in ranges if one is not None))
    kept = notes.raw("labels"), notes.raw("options"), notes.raw("created"), notes.raw("internal")
    about = dict(zip(("labels", "options", "created", "internal"), kept, strict=True))
    plugin = raw[0] if isinstance(raw[0], dict) else {}
    own = given.raw("keys") if file_keys else {}
    if encryption := given.text("encryption", choices=overlay.ENCRYPTIONS):
        own = {"encryption": encryption}
    if mode := given.text("mode", choices=MODES):
        own = {**(own if isinstance(own, dict) else {}), "mode": mode}
    if at_vlan := _vlan_gateway(given):
        own = {**(own if isinstance(own, dict) else {}), VLAN_GATEWAY: at_vlan}
        static = (*static, ip_network(str(at_vlan["range"])))
    if plugin.get("direct") is True and isinstance(own, dict) and (own.get("encryption") or own.get("mode") == L2):
        what = "encryption" if own.get("encryption") else "mode l2"
        raise ConfigProblem(f"option direct cannot be set together with {what}", hint="remove one of both")
    keys.problems.raise_any()
    return Network(
        name,
        identifier or sha256(name.encode()).hexdigest(),
        0,
        subnets,
        lengths,
        gateway,
        static,
        port,
        plugin,
        {key: value for key, value in about.items() if value is not None},
        own if isinstance(own, dict) else {},
    )


def _vlan_gateway(given: Section) -> Json:
    """The VLAN gateway as it is stored, {} without one. Raises ConfigProblem."""
    host, parent, vlan, text = (given.raw(key) for key in ("vlanGateway", "vlanParent", "vlan", "vlanRange"))
    if not (host or parent or vlan or text):
        return {}
    if not (host and parent and text) or not identity.identifier_problem(str(host)) == "":
        raise ConfigProblem(
            "options vlan-gateway, vlan-parent and vlan-range must be set together: one host, its link, and the "
            "addresses of the machines on the VLAN",
            hint="-o mode=l2 -o vlan-gateway=HOST -o vlan-parent=eth1 -o vlan=100 -o vlan-range=SUBNET",
        )
    found: Json = {"host": host, "parent": parent, "range": text, **({"vlan": vlan} if vlan else {})}
    keys = Section(found, "vlan-gateway")
    parse_vlan_gateway(keys)
    keys.problems.raise_any()
    return found


@dataclass(frozen=True, slots=True)
class Folders:
    """Where runtimes look for networks: ``cni`` lists and ``podman`` files; and ``overlay``, the folder of the
    files that ADD reads.
    """

    cni: str
    podman: str
    overlay: str

    def network_file(self, name: str) -> str:
        return os.path.join(self.overlay, f"{name}.json")

    def peers_file(self, name: str) -> str:
        return overlay.peers_path(self.network_file(name))

    def joined(self) -> list[str]:
        """The networks with a file that the agent has written."""
        try:
            names = sorted(os.listdir(self.overlay))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            stem = name.removesuffix(".json")
            if name.endswith(".json") and not name.endswith(".peers.json"):
                with contextlib.suppress(OSError, ValueError):
                    if json.loads(files.read(os.path.join(self.overlay, name))).get("kept") is True:
                        found.append(stem)
        return found


def conflist(network: Network, folders: Folders) -> Json:
    """The network list."""
    ipam: Json = {"type": "blocks"}
    if folders.overlay != overlay.FOLDER:
        ipam["file"] = folders.network_file(network.name)
    cluster: Json = {
        "id": network.id,
        "vni": network.vni,
        "subnets": [str(one) for one in network.subnets],
        **({"gateway": str(network.gateway)} if network.gateway is not None else {}),
        **({"static": [str(one) for one in network.static]} if network.static else {}),
    }
    plugin = {**network.plugin, "ipam": ipam}
    return {
        "cniVersion": VERSION,
        "name": network.name,
        "plugins": [plugin],
        OWN_KEY: {**network.notes, "cluster": cluster},
    }


def podman_file(network: Network) -> Json:
    """The network as podman 5 keeps it; it never allocates addresses itself (ipam driver none)."""
    notes = Section(dict(network.notes))
    return {
        "name": network.name,
        "id": network.id,
        "driver": "overlay",
        "created": notes.text("created") or "1970-01-01T00:00:00Z",
        "ipv6_enabled": any(one.version == 6 for one in network.subnets),
        "internal": network.internal,
        "dns_enabled": False,
        **({"labels": labels} if (labels := notes.raw("labels")) else {}),
        "ipam_options": {"driver": "none"},
    }


def offer(network: Network, folders: Folders, *, podman: bool) -> None:
    """Write both files, where they differ. Raises Conflict where another network has the name, StateDamaged."""
    content = conflist(network, folders)
    with conflists.locked(folders.cni):
        there = _same_name(folders.cni, network.name)
        if there is not None and _cluster_id(there) == "":
            raise Conflict(f"{there.path} defines another network {network.name}", hint="rename or remove one of them")
        if there is not None and there.content != content:
            conflists.remove(there)
            there = None
        if there is None:
            conflists.write(folders.cni, network.name, content, prefix=PREFIX)
    if podman:
        _offer_to_podman(network, os.path.join(folders.podman, f"{network.name}.json"))


def _offer_to_podman(network: Network, path: str) -> None:
    try:
        found = json.loads(files.read(path, _PODMAN_BYTES))
        # Podman writes the file itself where the network was created by it.
        if isinstance(found, dict) and found.get("driver") == "overlay" and found.get("name") == network.name:
            return
        raise Conflict(f"{path} defines another network {network.name}", hint="podman network rm removes it")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise StateDamaged(f"cannot read {path}: {error}") from error
    files.make_directory(os.path.dirname(path), "podman's networks", 0o755)
    files.write(path, json.dumps(podman_file(network), indent=5).encode(), "podman's network")
    os.chmod(path, 0o644)


def withdraw(name: str, folders: Folders) -> None:
    """Remove both files of a network of the cluster, if they are its. Raises StateDamaged."""
    with conflists.locked(folders.cni):
        there = _same_name(folders.cni, name)
        if there is not None and _cluster_id(there):
            conflists.remove(there)
    path = os.path.join(folders.podman, f"{name}.json")
    with contextlib.suppress(OSError, ValueError):
        if json.loads(files.read(path, _PODMAN_BYTES)).get("driver") == "overlay":
            files.remove(path, "podman's network")


def _same_name(folder: str, name: str) -> NetworkList | None:
    with contextlib.suppress(WeftError):
        return conflists.find(folder, name)
    return None


def _cluster_id(network: NetworkList) -> str:
    return network.cluster.text("id")
