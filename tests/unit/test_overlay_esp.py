"""IPsec of encrypted overlay networks on fake kernels: both hosts derive the same, and no key is used twice."""

from __future__ import annotations

import base64
import json
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cni_plugin.ops import Esp
from cni_plugin.ops.operation import Machine
from weft import esp, wireguard
from weft.errors import Busy, Exists, KernelLacks, StateDamaged
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.values import EspPolicy, EspRow, EspState

PORT = 20680
LOW_ORDER = base64.b64encode(bytes(32)).decode()


class Two:
    """Two hosts with a network blue, their files, and what was ever added to each kernel."""

    def __init__(self, folder: Path) -> None:
        self.paths = {n: str(folder / f"h{n}" / "blue.json") for n in (1, 2)}
        self.kernels = {n: FakeKernel() for n in (1, 2)}
        self.added: list[EspState] = []
        self.generations, self.sending = {1: [1], 2: [1]}, {1: 1, 2: 1}
        self.extra: list[dict[str, Any]] = []
        for n in (1, 2):
            Path(self.paths[n]).parent.mkdir()
            host = self.kernels[n].host
            host.add_esp = self._watched(host.add_esp)  # type: ignore[method-assign]

    def _watched(self, add: Any) -> Any:
        def watched(rows: Any) -> None:
            listed = list(rows)
            self.added += [one for one in listed if isinstance(one, EspState)]
            add(listed)

        return watched

    def write(self) -> None:
        """What the agents do: keys where there are none, and both files."""
        keys = {
            n: [{"generation": one, "key": wireguard.make_key(path, one)} for one in self.generations[n]]
            for n, path in self.paths.items()
        }
        for n, path in self.paths.items():
            other = 3 - n
            own = {
                "format": 1, "network": "blue", "vni": 100, "mac": f"02:77:00:00:00:0{n}", "underlay": f"192.0.2.{n}",
                "mtu": 1416, "subnets": ["10.60.0.0/16"], "blocks": [f"10.60.{n}.0/24"], "port": PORT,
                "encryption": "ipsec", "keys": keys[n], "generation": self.sending[n],
            }  # fmt: skip
            peer = {
                "name": f"h{other}", "underlay": f"192.0.2.{other}", "mac": f"02:77:00:00:00:0{other}",
                "blocks": [f"10.60.{other}.0/24"], "keys": keys[other],
            }  # fmt: skip
            Path(path).write_text(json.dumps(own))
            document = {"format": 1, "network": "blue", "peers": [peer, *self.extra]}
            Path(path.replace(".json", ".peers.json")).write_text(json.dumps(document))

    def operation(self, n: int) -> Esp:
        return Esp("weft:mark", "blue", self.paths[n], 100)

    def machine(self, n: int) -> Machine:
        return cast(Machine, SimpleNamespace(host=self.kernels[n].host))

    def apply(self, *numbers: int) -> None:
        for n in numbers or (1, 2):
            self.operation(n).apply(self.machine(n))

    def rows(self, n: int) -> set[EspRow]:
        return set(self.kernels[n].host.esp(esp.REQIDS | 100))

    def sends(self, n: int) -> int:
        """The SPI of the policy for what a host sends."""
        [found] = [one.spi for one in self.rows(n) if isinstance(one, EspPolicy) and one.out]
        return found

    def keys(self, n: int) -> dict[int, bytes]:
        """The keys of the states that a host has."""
        there = {one.spi for one in self.rows(n) if isinstance(one, EspState)}
        return {one.spi: one.key for one in self.added if one.spi in there}


@pytest.fixture
def two(tmp_path: Path) -> Two:
    made = Two(tmp_path)
    made.write()
    return made


def test_both_hosts_have_the_same_states_and_opposite_policies(two: Two) -> None:
    two.apply()
    states = [{one for one in two.rows(n) if isinstance(one, EspState)} for n in (1, 2)]
    assert states[0] == states[1] and len(states[0]) == 2
    assert len({one.key for one in two.added}) == 2 == len({one.spi for one in two.added}), "a key for each direction"
    assert all(len(one.key) == 36 for one in two.added)
    for n in (1, 2):
        assert {one.out for one in two.rows(n) if isinstance(one, EspPolicy)} == {True, False}
        assert two.sends(n) in {one.spi for one in states[0] if one.source == ip_address(f"192.0.2.{n}")}
        assert two.operation(n).mismatch(two.machine(n)) is None
        assert not two.operation(n).apply(two.machine(n))
    text = " ".join(two.operation(1).commands("")) + repr(states)
    assert not any(one.key.hex() in text or repr(one.key) in text for one in two.added)
    two.operation(1).undo(two.machine(1))
    assert two.rows(1) == set()


def test_keys_are_replaced_by_overlap(two: Two) -> None:
    """At no step does one host send with what the other cannot receive."""
    two.apply()
    first = two.sends(1)
    for keys, sending in (([1, 2], 1), ([1, 2], 2), ([2], 2)):
        for n in (1, 2):
            two.generations[n], two.sending[n] = keys, sending
            two.write()
            two.apply(n)
            if keys == [1, 2]:
                two.apply(3 - n)
            for one in (1, 2):
                assert two.sends(one) in two.keys(3 - one)
                assert two.keys(1)[two.sends(one)] == two.keys(2)[two.sends(one)]
    assert len(two.keys(1)) == 2 and two.sends(1) != first


@pytest.mark.parametrize("way", ["all", "one", "restart"])
def test_a_key_is_not_used_again(two: Two, way: str) -> None:
    two.apply()
    before = {one.key for one in two.added}
    host = two.kernels[1].host
    gone = [one for one in two.rows(1) if isinstance(one, EspState) or way == "restart"]
    host.delete_esp(gone[: 1 if way == "one" else None])
    told = two.operation(1).mismatch(two.machine(1))
    assert told is not None and "must not be used again" in told
    two.apply(1)
    assert not [one for one in two.rows(1) if isinstance(one, EspState)], "nothing passes until there is another key"
    assert two.sends(1) == esp.NO_STATE
    with pytest.raises(Busy, match=r"blue\.1\.key is missing"):
        two.apply(1)
    two.write()
    two.apply()
    assert two.keys(1) == two.keys(2) and len(two.keys(1)) == 2 and not before & set(two.keys(1).values())
    assert two.sends(1) in two.keys(2) and two.sends(2) in two.keys(1)
    assert all(two.operation(n).mismatch(two.machine(n)) is None for n in (1, 2))


def test_a_peer_that_returns_needs_another_key(two: Two) -> None:
    two.apply()
    path = Path(two.paths[1].replace(".json", ".peers.json"))
    content = path.read_text()
    path.write_text(json.dumps({"format": 1, "network": "blue", "peers": []}))
    two.apply(1)
    assert two.rows(1) == set()
    path.write_text(content)
    two.apply(1)
    assert not [one for one in two.rows(1) if isinstance(one, EspState)]
    two.write()
    two.apply()
    assert two.keys(1) == two.keys(2)
    assert len({one.spi for one in two.added}) == len({one.key for one in two.added}) == 4


def test_a_peer_with_a_worthless_key_hinders_no_other(two: Two) -> None:
    """A point of low order: everybody could derive the same."""
    bad = {"underlay": "192.0.2.9", "mac": "02:77:00:00:00:09", "blocks": ["10.60.9.0/24"], "name": "bad"}
    two.extra = [bad | {"keys": [{"generation": 1, "key": LOW_ORDER}]}]
    two.write()
    two.apply()
    assert two.keys(1) == two.keys(2) and len(two.keys(1)) == 2
    [policy] = [one for one in two.rows(1) if one.destination == ip_address("192.0.2.9")]
    assert isinstance(policy, EspPolicy) and policy.spi == esp.NO_STATE
    assert two.operation(1).mismatch(two.machine(1)) is None


def test_a_kernel_without_esp_costs_no_key(two: Two) -> None:
    host = two.kernels[1].host
    add = host.add_esp

    def refuse(rows: object) -> None:
        raise KernelLacks("cannot add the IPsec state: no ESP")

    host.add_esp = refuse  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(KernelLacks):
            two.apply(1)
    host.add_esp = add  # type: ignore[method-assign]
    two.apply()
    assert two.keys(1) == two.keys(2) and len(two.keys(1)) == 2


def test_an_spi_that_another_program_has_is_not_taken(two: Two) -> None:
    private, keys = wireguard.read_key(two.paths[1], 1), [wireguard.make_key(two.paths[n], 1) for n in (1, 2)]
    spi = esp.derive(private, *keys, 100, 1)[0].spi
    other = EspState(ip_address("198.51.100.1"), ip_address("192.0.2.2"), 1, 5, spi)
    two.kernels[1].host.add_esp([other])
    with pytest.raises(Exists):
        two.apply(1)
    assert other in two.kernels[1].host.esp(5), "it is another program's"
    two.write()
    two.apply()
    assert two.keys(1) == two.keys(2) and other in two.kernels[1].host.esp(5)


def test_a_damaged_key_file_is_named(two: Two) -> None:
    two.apply()
    file = Path(wireguard.key_path(two.paths[1], 1))
    file.write_text(file.read_text() + "x y\n")
    with pytest.raises(StateDamaged, match=r"blue\.1\.key"):
        two.apply(1)


def test_a_file_with_another_public_key_than_the_private_one(two: Two) -> None:
    Path(wireguard.key_path(two.paths[1], 1)).unlink()
    wireguard.make_key(two.paths[1], 1)
    with pytest.raises(Busy, match="another public key"):
        two.apply(1)
    assert esp.used(two.paths[1], 1) == {}
