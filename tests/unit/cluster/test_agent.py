"""The agent's part for overlay networks: several agents on one store, with hosts that only take notes."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster import networks, nodes, records, tunnels
from cluster.host_files import Host
from cluster.records import Block, Network
from cluster.view import View
from cni_plugin.agent import claim_hold, overlay_recovery
from cni_plugin.agent.claim_hold import Hold
from cni_plugin.agent.overlay_host import Look, OverlayHost, Stamp
from cni_plugin.agent.overlays import Overlays
from discovery.metrics import Metrics
from store import Entry, Put, Range, Store
from store.embedded import open_embedded
from weft.errors import BadOption, InUse, Missing
from weft.types import Address

SMALL = Network("small", "id", 0, (ip_network("10.60.0.0/26"),), (28,))


@dataclass
class Notes:
    """What an agent has its host do."""

    node: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    leased: set[Address] = field(default_factory=set)
    attached: dict[str, int] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    on_join: Callable[[str], None] = lambda node: None
    stamped: Stamp = field(default_factory=Stamp)

    def __post_init__(self) -> None:
        self.folders = SimpleNamespace(joined=lambda: sorted(self.files))

    def look(self, known: object, keys: dict[str, tuple[int, ...]]) -> Look:
        host = Host(self.node, ip_address(f"192.0.2.{self.node[1:]}"), 1500)
        leased = {"small": frozenset(self.leased)}
        made = {name: {one: self.key(one) for one in generations} for name, generations in keys.items()}
        return Look(host, frozenset(self.files), dict(self.attached), leased, dict(self.conflicts), made)

    def stamp(self) -> Stamp:
        return self.stamped

    def key(self, generation: int) -> str:
        return base64.b64encode(bytes([int(self.node[1:]), generation] * 16)).decode()

    def join(self, network: Network, own: dict[str, Any], peers: dict[str, Any], full: bool) -> list[str]:
        self.files[network.name], self.peers[network.name] = own, peers
        self.on_join(self.node)
        return []

    def withhold(self, name: str, own: dict[str, Any]) -> frozenset[Address]:
        self.files[name] = own
        return frozenset(self.leased)

    def leave(self, name: str) -> str:
        if self.attached.get(name):
            return "still used"
        del self.files[name], self.peers[name]
        return ""


class Agents:
    """Agents h1, h2 … on one store."""

    def __init__(self, store: Store, folder: Path, count: int) -> None:
        self.store = store
        self.hosts = {f"h{number}": Notes(f"h{number}") for number in range(1, count + 1)}
        self.agents: dict[str, Overlays] = {}
        for name, host in self.hosts.items():
            (folder / name).mkdir(exist_ok=True)
            there = cast(OverlayHost, host)
            self.agents[name] = Overlays(name, store, there, str(folder / name), Metrics())

    async def start(self) -> None:
        for one in self.agents.values():
            await one.start()

    async def stop(self) -> None:
        for one in self.agents.values():
            await one.stop()

    def blocks(self, name: str) -> list[str]:
        return list(self.hosts[name].files.get("small", {}).get("blocks", []))

    def peers(self, name: str) -> dict[str, list[str]]:
        return {one["name"]: one["blocks"] for one in self.hosts[name].peers["small"]["peers"]}


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


async def set_up(folder: Path, count: int) -> Agents:
    found = Agents(await open_embedded(folder / "catalog.db"), folder, count)
    await found.start()
    await networks.create(found.store, SMALL)
    return found


async def unread(found: Agents) -> None:
    """Wait until all agents have made a pass with an invalid record of the network."""
    await until(lambda: all("small" in one.view.unread() for one in found.agents.values()), "the invalid record")
    passes = {name: one._passes for name, one in found.agents.items()}
    for one in found.agents.values():
        one._wake.set()
    await until(lambda: all(one._passes > passes[name] for name, one in found.agents.items()), "a pass")


async def test_the_kernel_is_compared_when_the_host_has_changed_and_not_for_each_container(tmp_path: Path) -> None:
    """That takes longer than all else until other hosts know of the container."""
    store, host = await open_embedded(tmp_path / "catalog.db"), Notes("h1")
    one = Overlays("h1", store, cast(OverlayHost, host), str(tmp_path), Metrics())
    one.look = Look(None, frozenset({"small"}))
    for stamp, full in ((Stamp(("c1",)), False), (Stamp(("c1",), ("eth1",)), True), (Stamp((), ("eth1",)), False)):
        host.stamped, one._full = stamp, False
        one._wake.clear()
        await one.look_again()
        assert one._wake.is_set() and one._full is full, stamp
    await one.stop()
    await store.close()


async def test_nobody_leaves_a_network_whose_record_is_invalid(tmp_path: Path) -> None:
    found = await set_up(tmp_path, 2)
    await until(
        lambda: all(len(found.hosts[name].peers.get("small", {}).get("peers", ())) for name in found.hosts), "peers"
    )
    before = {name: (found.blocks(name), found.peers(name)) for name in found.hosts}
    key = f"{records.ROOT}network/small"
    good = (await found.store.range(key)).entries[0].value
    await found.store.transact([], [Put(key, b"{")])
    await unread(found)
    assert {name: (found.blocks(name), found.peers(name)) for name in found.hosts} == before
    await found.stop()
    for name in found.hosts:
        (tmp_path / name / "networks.json").unlink()
    # Agents that never knew a valid one.
    again = Agents(found.store, tmp_path, 2)
    for name, host in found.hosts.items():
        again.hosts[name].files, again.hosts[name].peers = host.files, host.peers
    await again.start()
    await unread(again)
    assert {name: (again.blocks(name), again.peers(name)) for name in again.hosts} == before
    assert all(one.count for one in again.agents.values()), "the agent is needed"
    await found.store.transact([], [Put(key, good)])
    await until(lambda: not any(one.view.unread() for one in again.agents.values()), "the valid record")
    await networks.remove(found.store, "small")
    await until(lambda: not any(host.files for host in again.hosts.values()), "the removal")
    await again.stop()
    await found.store.close()


async def test_every_host_gets_a_part_and_knows_those_of_the_others(tmp_path: Path) -> None:
    """Of four blocks for five hosts one is split."""
    found = await set_up(tmp_path, 5)
    await until(lambda: all(found.blocks(name) for name in found.hosts), "a block for each")
    await until(
        lambda: all(
            found.peers(name) == {other: found.blocks(other) for other in found.hosts if other != name}
            for name in found.hosts
        ),
        "peers with their blocks",
    )
    every = [ip_network(one) for name in found.hosts for one in found.blocks(name)]
    assert sum(one.num_addresses for one in every) == 64 and len({*every}) == len(every) >= 5
    assert all(one["mtu"] == 1450 for one in (host.files["small"] for host in found.hosts.values()))
    found.hosts["h2"].attached["small"] = 1
    found.agents["h2"]._wake.set()
    key = records.member_key("h2", "small")
    await until(lambda: found.agents["h1"].view.members("small")["h2"].attached, "the use by h2")
    await networks.remove(found.store, "small", force=True)
    await until(lambda: not any(host.files for name, host in found.hosts.items() if name != "h2"), "the removal")
    await until(lambda: found.agents["h2"].problems.get("small"), "the problem of h2")
    found.hosts["h2"].attached.clear()
    found.agents["h2"]._wake.set()
    await until(lambda: not found.hosts["h2"].files, "the removal on h2")
    await until(lambda: found.agents["h1"].view.entry(key) is None, "the end of its record")
    await found.stop()
    await found.store.close()


async def test_keys_are_replaced_without_a_gap(tmp_path: Path) -> None:
    """Whenever a host sends with a key, all others have it, and it has theirs; also while one is slow."""
    found = Agents(await open_embedded(tmp_path / "catalog.db"), tmp_path, 4)
    broken: list[str] = []

    def known(node: str, other: str) -> set[int]:
        """The generations with which a host is able to receive from another."""
        if "small" not in found.hosts[node].files:
            return set()
        own = {one["generation"] for one in found.hosts[node].files["small"]["keys"]}
        said = {one["name"]: one.get("keys", ()) for one in found.hosts[node].peers["small"]["peers"]}
        return own & {one["generation"] for one in said.get(other, ())}

    def watch(changed: str) -> None:
        """As a host's files change: it sends to no one who cannot receive it, and takes no key that is in use."""
        for node, other in permutations(found.hosts, 2):
            if changed not in (node, other) or not all("small" in found.hosts[one].files for one in (node, other)):
                continue
            peers = {one["name"] for one in found.hosts[node].peers["small"]["peers"]}
            generation = found.hosts[node].files["small"]["generation"]
            if started and other in peers and generation not in known(other, node):
                broken.append(f"{node} sends with {generation}, {other} has {known(other, node)}")

    def all_said(view: View, generation: int) -> bool:
        network = view.network("small")
        return (
            network is not None
            and tunnels.wanted(network) == generation
            and not tunnels.lagging(network, view.sharing(network))
        )

    def replaced(generation: int, *names: str) -> bool:
        own = [found.hosts[name].files["small"]["keys"] for name in names]
        return all([one["generation"] for one in keys] == [generation] for keys in own)

    for host in found.hosts.values():
        host.on_join = watch
    started = False
    await found.start()
    await networks.create(found.store, replace(SMALL, keys={"encryption": "wireguard"}))
    await until(lambda: all(known(*pair) == {1} for pair in permutations(found.hosts, 2)), "the first keys")
    started = True
    for generation in (2, 3, 4):
        network = await networks.replace_keys(found.store, "small")
        assert network.keys["generation"] == generation
        with pytest.raises(InUse, match="has older ones still"):
            await networks.replace_keys(found.store, "small")
        await until(partial(replaced, generation, *found.hosts), "new keys")
        view = found.agents["h1"].view
        await until(partial(all_said, view, generation), "the end of it")
    assert broken == []
    # A host that publishes nonsense is reported, and the others go on.
    bad = Put(
        records.member_key("h4", "small"),
        b'{"underlay": "192.0.2.4", "mac": "02:00:00:00:00:04", "keys": {"keys": [{}]}}',
    )
    await found.agents["h4"].stop()
    await found.store.transact([], [bad])
    await until(lambda: found.agents["h1"].left_out["small"].get("h4"), "the report")
    await networks.replace_keys(found.store, "small")
    await until(partial(replaced, 5, "h1", "h2", "h3"), "the next keys")
    assert found.peers("h1").keys() == {"h2", "h3"}
    with pytest.raises(BadOption, match="not encrypted"):
        await networks.create(found.store, replace(SMALL, name="plain", subnets=(ip_network("10.61.0.0/26"),)))
        await networks.replace_keys(found.store, "plain")
    with pytest.raises(Missing):
        await networks.replace_keys(found.store, "none")
    await found.stop()
    await found.store.close()


async def test_a_host_that_cannot_take_part_has_no_block(tmp_path: Path) -> None:
    found = Agents(await open_embedded(tmp_path / "catalog.db"), tmp_path, 2)
    found.hosts["h2"].conflicts["small"] = "its subnet is in use"
    await found.start()
    await networks.create(found.store, SMALL)
    await until(lambda: found.blocks("h1"), "a block of h1")
    await until(lambda: found.agents["h1"].view.members("small").get("h2"), "the record of h2")
    assert found.agents["h1"].view.members("small")["h2"].problem == "its subnet is in use"
    assert found.blocks("h2") == [] and found.peers("h1") == {}
    found.hosts["h2"].conflicts.clear()
    found.agents["h2"]._wake.set()
    await until(lambda: found.blocks("h2") and found.peers("h1"), "h2 takes part")
    await found.stop()
    await found.store.close()


async def test_a_host_starts_from_what_it_knows(tmp_path: Path) -> None:
    found = await set_up(tmp_path, 2)
    await until(lambda: found.blocks("h1") and found.blocks("h2") and found.peers("h1"), "blocks")
    before = found.hosts["h1"].files["small"]
    await until(lambda: (tmp_path / "h1" / "networks.json").exists(), "the file")
    await found.agents["h1"].passed(lambda: True, 5)
    await found.stop()
    await found.store.close()
    closed = Agents(found.store, tmp_path, 1)
    await closed.start()
    await until(lambda: closed.hosts["h1"].files.get("small") == before, "the network without a store")
    assert closed.agents["h1"].store_problem
    await closed.stop()


async def test_what_a_host_has_of_blocks_is_kept_before_a_pass_ends(tmp_path: Path) -> None:
    """Passes wait for a store that does not answer, and may be killed there by who accepts a restored one."""
    found = await set_up(tmp_path, 2)
    await until(lambda: found.blocks("h1") and found.blocks("h2"), "blocks")
    agent = found.agents["h1"]
    await agent.passed(lambda: agent._saved == agent.view.version, 60)
    agent._pass = asyncio.Event().wait  # type: ignore[method-assign,assignment]
    network, path = agent.view.network("small"), str(tmp_path / "h1" / "networks.json")
    assert network is not None
    part, lent = ip_network(found.blocks("h1")[0]), [*ip_network(found.blocks("h2")[0]).subnets(1)][1]
    for block in (Block(lent.supernet(), "h2", ((lent, "h1"),)), Block(lent.supernet(), "h2"), Block(part, "h2")):
        await found.store.put(records.block_key("small", block.subnet), records.encode(block))

        def is_kept(block: Block = block) -> bool:
            there = View()
            assert there.restore(path)
            at = there.blocks(network).at(block.subnet)
            return at is not None and (at.node, at.parts) == (block.node, block.parts)

        await until(is_kept, f"{block} in the file")
    # Also where the watch has ended, and the list is read anew.
    Path(path).unlink()
    agent._saved = 0
    following = asyncio.create_task(agent._follow())
    await until(Path(path).exists, "the file of the list")
    following.cancel()
    await found.stop()
    await found.store.close()


async def test_blocks_of_a_removed_node_are_freed(tmp_path: Path) -> None:
    found = await set_up(tmp_path, 3)
    await until(lambda: all(found.blocks(name) for name in found.hosts), "a block for each")
    await found.agents["h3"].stop()
    node = nodes.Node("h3", "i", (ip_address("192.0.2.3"),), "1", 0.0, nodes.Role.CLIENT, nodes.State.REMOVED)
    partitioned = replace(node, removed=time.time())
    await found.store.put(nodes.record_key("h3"), nodes.encode(partitioned))

    def look() -> None:
        for name in ("h1", "h2"):
            found.agents[name]._recovery._look_for_removed = 0.0
            found.agents[name]._wake.set()

    def blocks() -> dict[str, object]:
        view = found.agents["h1"].view
        network = view.network("small")
        assert network is not None
        return dict(view.blocks(network).owners())

    passes = found.agents["h1"]._passes
    look()
    await until(lambda: found.agents["h1"]._passes > passes, "a look")
    assert "h3" in blocks(), "a host that may be cut off keeps its blocks"
    await found.store.put(nodes.record_key("h3"), nodes.encode(replace(partitioned, powered_off=True)))
    look()
    await until(lambda: "h3" not in blocks(), "the end of its blocks")
    for name in ("h1", "h2"):
        await found.agents[name].stop()
    await found.store.close()


async def test_what_a_restored_store_lacks_is_written_again(tmp_path: Path) -> None:
    found = await set_up(tmp_path, 2)
    await until(lambda: found.blocks("h1") and found.blocks("h2") and found.peers("h1"), "blocks")
    before = {name: found.blocks(name) for name in found.hosts}
    agent = found.agents["h1"]
    await found.stop()
    await found.store.close()
    emptied = await open_embedded(tmp_path / "other.db")
    await emptied.transact((), [Put("/weft/v2/anything", b"")])
    again = Agents(emptied, tmp_path, 2)
    for name, host in again.hosts.items():
        host.files, host.peers = found.hosts[name].files, found.hosts[name].peers
    await again.start()
    await until(lambda: all(one.view.revision and not one.view.held for one in again.agents.values()),
                "everything written again")  # fmt: skip
    assert {name: again.blocks(name) for name in again.hosts} == before
    assert agent.view.networks().keys() == again.agents["h2"].view.networks().keys()
    await networks.remove(emptied, "small", force=True)
    await until(lambda: not any(one.files for one in again.hosts.values()), "the end of a network that is removed then")
    await again.stop()
    await emptied.close()


@pytest.mark.parametrize(("accepted", "restarted"), [(False, False), (True, False), (True, True)])
async def test_a_block_that_looks_free_in_a_restored_store_is_not_claimed(
    tmp_path: Path, accepted: bool, restarted: bool
) -> None:
    """A host that was away has not heard who has claimed it after the snapshot: it asks for a part of others'. Its
    agent may have been restarted since the store was accepted.
    """
    found = await set_up(tmp_path, 2)
    await until(lambda: found.blocks("h1") and found.blocks("h2") and found.peers("h1"), "blocks")
    await found.stop()
    for name in found.hosts if accepted else ():
        Hold(str(tmp_path / name)).accept()
    if restarted:
        before = Agents(found.store, tmp_path, 2)
        await before.start()
        await until(lambda: all(one.view.revision for one in before.agents.values()), "the restored store")
        await before.stop()
    again = Agents(found.store, tmp_path, 2)
    for name, host in again.hosts.items():
        host.files, host.peers = found.hosts[name].files, found.hosts[name].peers
    (own,) = (ip_network(one) for one in found.blocks("h1"))
    again.hosts["h1"].leased |= {*own.hosts()}
    await again.start()
    await until(lambda: len(again.blocks("h1")) == 2, "more addresses")
    claimed = (await found.store.range(records.blocks_prefix("small"))).entries
    assert len(claimed) == (2 if accepted else 3)
    assert ip_network(again.blocks("h1")[1]).prefixlen == (29 if accepted else 28)
    await networks.create(found.store, replace(SMALL, name="later", subnets=(ip_network("10.61.0.0/26"),)))
    await until(lambda: all("later" in host.files for host in again.hosts.values()), "blocks of a network made later")
    await again.stop()
    await found.store.close()


@pytest.mark.parametrize("over", [False, True])
async def test_a_host_that_joins_a_restored_cluster_claims_no_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """It has heard of nobody's blocks; the others tell it for how long none must be claimed."""
    found = await set_up(tmp_path, 1)
    await until(lambda: found.blocks("h1"), "a block")
    await found.stop()
    Hold(str(tmp_path / "h1")).accept()
    if over:
        monkeypatch.setattr(claim_hold, "SECONDS", 1.0)
    again = Agents(found.store, tmp_path, 2)
    again.hosts["h1"].files, again.hosts["h1"].peers = found.hosts["h1"].files, found.hosts["h1"].peers
    one, two = again.agents.values()
    await one.start()
    await until(lambda: one.view.values_below(records.RESTORED), "what the others are told")
    if over:
        await until(lambda: not one.view.values_below(records.RESTORED), "the end of that")
    await two.start()
    await until(lambda: again.blocks("h2"), "addresses of the host that has joined")
    assert ip_network(again.blocks("h2")[0]).prefixlen == (28 if over else 29), "a block of its own, or a part of h1's"
    await again.stop()
    await found.store.close()


async def test_blocks_that_are_written_again_keep_their_order(tmp_path: Path) -> None:
    """The first one has the host's own address, which must not become a container's."""
    store, view = await open_embedded(tmp_path / "catalog.db"), View()
    network = replace(SMALL, vni=1, subnets=(ip_network("10.60.0.0/16"),), blocks=(24,))
    older, newer = (Block(ip_network(f"10.60.{number}.0/24"), "h1") for number in (20, 100))
    known = [Entry(network.key, records.encode(network), 100, 100, 1)]
    for revision, one in ((101, older), (102, newer)):
        known.append(Entry(records.block_key("small", one.subnet), records.encode(one), revision, revision, 1))
    view.load(Range(tuple(known), 102), "h1")
    view.load(await store.range(records.ROOT), "h1")
    assert view.doubted and len(view.held) == 3
    await overlay_recovery.Recovery("h1", store, view, Hold(str(tmp_path))).reassert()
    view.load(await store.range(records.ROOT), "h1")
    assert view.blocks(network).of("h1") == (older.subnet, newer.subnet)
    await store.close()


async def test_a_restored_store_is_doubted_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that lacks nothing, since others have written it again before."""
    store, view = await open_embedded(tmp_path / "catalog.db"), View()
    view.load(Range((Entry(records.LIST, b"blue", 50, 61, 2),), 61), "h1")
    view.load(Range((Entry(records.LIST, b"blue", 2, 2, 1),), 2), "h1")
    hold = Hold(str(tmp_path))
    recovery = overlay_recovery.Recovery("h1", store, view, hold)
    hold.accept()
    assert not recovery.may_claim("green"), "until the store is read, what is free is not known"
    recovery.note_read(frozenset({"blue"}))
    assert view.doubted and not view.held
    assert not recovery.may_claim("blue") and recovery.may_claim("green"), "green was made later"
    since = hold._since
    for boot, longer in ((claim_hold.boot_id(), False), ("another", True)):
        monkeypatch.setattr(claim_hold, "boot_id", lambda boot=boot: boot)
        hold._networks, hold._since = frozenset(), 0.0
        hold.read()
        assert not recovery.may_claim("blue") and (hold._since > since) is longer
    assert not await recovery.reassert()
    assert view.doubted
    monkeypatch.setattr(claim_hold, "SECONDS", -1.0)
    assert await recovery.reassert(), "a pass leaves what was removed before"
    assert not view.doubted and recovery.may_claim("blue") and not (tmp_path / "restored.json").exists()
    await store.close()
