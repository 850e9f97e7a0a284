"""What a host leases from while it knows the store's state from its file only."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from unit.cluster.test_overlay_networks import entries

from cluster.records import Block
from cluster.view import View
from cni_plugin.agent.overlay_blocks import OwnBlocks
from cni_plugin.agent.overlay_host import Look
from store import Range


def test_a_block_that_was_given_back_is_not_leased_from_again(tmp_path: Path) -> None:
    """An agent that was killed right after the return has the block in its list still, not in the network's file."""
    view, path = View(), str(tmp_path / "networks.json")
    view.load(Range(tuple(entries(3)), 50), "h1")
    view.save(path)
    again = View()
    assert again.restore(path)
    network = again.network("blue")
    assert network is not None
    whole = again.blocks(network)
    blocks = replace(whole, all=(*whole.all, Block(ip_network("10.60.9.0/24"), "h1", created=60)))
    own = OwnBlocks("h1", None, again, lambda: None)  # type: ignore[arg-type]

    def leased_from(*leasing: str) -> list[str]:
        look = Look(None, leasing={"blue": tuple(map(ip_network, leasing))} if leasing else {})
        return [str(one) for one in own.of(network, blocks, look)]

    assert leased_from("10.60.1.0/24") == ["10.60.1.0/24"]
    assert leased_from("10.60.1.0/25", "10.60.9.0/24") == ["10.60.1.0/25", "10.60.9.0/24"]
    assert leased_from() == ["10.60.1.0/24", "10.60.9.0/24"], "a network that was never set up here"
    again.load(Range(tuple(entries(3)), 70), "h1")
    assert leased_from("10.60.1.0/25") == ["10.60.1.0/24", "10.60.9.0/24"], "the store has been read"
