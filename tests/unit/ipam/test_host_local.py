from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ipam import view as view_module
from ipam.directory import Directory
from ipam.host_local import (
    HostState,
    Owner,
    Pool,
    available,
    lacks,
    owners,
    preview,
    read,
    release,
    reserve,
)
from weft.errors import ConfigProblem, Conflict, PoolExhausted, StateDamaged, WeftError
from weft.section import Problems, Section
from weft.types import Dns, Result

ROOT = Path(__file__).resolve().parents[3]
HOST_LOCAL = Path("/usr/lib/cni/host-local")
ONE, TWO = Owner("one", "eth0"), Owner("two", "eth0")


def parse(
    ipam: Mapping[str, Any],
    *,
    arguments: Mapping[str, str] | None = None,
    args_cni: Mapping[str, Any] | None = None,
    runtime: Mapping[str, Any] | None = None,
) -> Pool:
    problems = Problems()
    pool = read(
        Section(dict(ipam), "ipam", problems),
        network="blue",
        version="1.0.0",
        arguments=arguments or {},
        args_cni=Section(dict(args_cni or {}), "args.cni", problems),
        runtime=Section(dict(runtime or {}), "runtimeConfig", problems),
    )
    problems.raise_any()
    return pool


@pytest.fixture
def state(tmp_path: Path) -> HostState:
    return HostState(str(tmp_path / "index"), 0.0, lambda network, owner: True)


@pytest.fixture(params=["read", "indexed"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both views of the taken addresses: the directory listing, and the index."""
    if request.param == "indexed":
        monkeypatch.setattr(view_module, "SMALL", 0)
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path, size: str) -> str:
    return str(tmp_path / "networks")


def small(data: str, **more: Any) -> dict[str, Any]:
    """A /28 with 13 addresses, .2 to .14."""
    return {"subnet": "10.1.0.0/28", "dataDir": data, **more}


def shown(result: Result) -> list[str]:
    return [str(each.address) for each in result.ips]


def listed(pool: Pool) -> dict[str, Owner]:
    return {str(address): owner for address, owner, _ in owners(pool.directory)}


def test_an_answer_has_everything_but_interfaces(data: str, state: HostState, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "# comment\nnameserver 10.1.0.1\nnameserver fd00::1\ndomain a.test\nsearch b.test c.test\noptions ndots:2\nx\n"
    )
    pool = parse(
        small(data, ranges=[[{"subnet": "fd00::/64"}]], resolvConf=str(tmp_path / "resolv.conf"),
              routes=[{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "table": 5, "scope": 0}])
    )  # fmt: skip
    answer = reserve(pool, ONE, state)
    assert shown(answer) == ["10.1.0.2/28", "fd00::2/64"]
    assert [str(each.gateway) for each in answer.ips] == ["10.1.0.1", "fd00::1"]
    assert answer.dns == Dns(("10.1.0.1", "fd00::1"), "a.test", ("b.test", "c.test"), ("ndots:2",))
    assert (str(answer.routes[0].destination), answer.routes[0].table, answer.routes[0].scope) == ("0.0.0.0/0", 5, 0)
    assert answer.interfaces == ()
    assert Path(data, "blue", "last_reserved_ip.1").read_text() == "fd00::2"


def test_preview_equals_reserve_and_creates_no_files(data: str, state: HostState) -> None:
    pool = parse(small(data))
    expected = preview(pool, ONE, state)
    assert not os.path.exists(data)
    assert reserve(pool, ONE, state) == expected
    before = sorted(os.listdir(pool.directory)), os.stat(pool.directory).st_mtime_ns
    expected = preview(pool, TWO, state)
    assert (sorted(os.listdir(pool.directory)), os.stat(pool.directory).st_mtime_ns) == before
    assert reserve(pool, TWO, state) == expected


def test_all_addresses_are_allocated_before_the_pool_is_exhausted(data: str, state: HostState) -> None:
    pool = parse(small(data, exclude=["10.1.0.4", "10.1.0.8/31"]))
    available(pool, state)
    given = [shown(reserve(pool, Owner(f"c{number}", "eth0"), state))[0] for number in range(10)]
    assert given == [f"10.1.0.{last}/28" for last in (2, 3, 5, 6, 7, 10, 11, 12, 13, 14)]
    with pytest.raises(PoolExhausted, match=r"on blue in 10\.1\.0\.1-10\.1\.0\.14: 10 of 10 in use"):
        reserve(pool, ONE, state)
    with pytest.raises(WeftError, match="10 of 10 in use") as caught:
        available(pool, state)
    assert caught.value.code == 50
    release(pool.directory, "blue", Owner("c4", "eth0"), state)
    available(pool, state)
    assert shown(reserve(pool, ONE, state)) == ["10.1.0.7/28"]


def test_a_freed_address_is_reused_last(data: str, state: HostState) -> None:
    pool = parse(small(data))
    given = []
    for number in range(14):
        owner = Owner(f"c{number}", "eth0")
        given.append(shown(reserve(pool, owner, state))[0])
        release(pool.directory, "blue", owner, state)
    assert len(set(given[:13])) == 13
    assert given[13] == given[0]


def test_nothing_is_reserved_if_one_range_set_is_exhausted(data: str, state: HostState) -> None:
    pool = parse({"dataDir": data, "ranges": [[{"subnet": "10.1.0.0/28"}], [{"subnet": "10.2.0.0/30"}]]})
    reserve(pool, ONE, state)
    before = listed(pool)
    with pytest.raises(PoolExhausted, match=r"10\.2\.0\.1-10\.2\.0\.2: 1 of 1"):
        reserve(pool, TWO, state)
    assert listed(pool) == before


def test_a_second_reservation_is_refused_and_keeps_the_first(data: str, state: HostState) -> None:
    pool = parse(small(data, ranges=[[{"subnet": "fd00::/64"}]]))
    reserve(pool, ONE, state)
    with pytest.raises(Conflict, match=r"one/eth0 already has 10\.1\.0\.2"):
        reserve(pool, ONE, state)
    other = parse({"dataDir": data, "ranges": [[{"subnet": "10.3.0.0/24"}], [{"subnet": "fd00::/64"}]]})
    with pytest.raises(Conflict, match=r"one/eth0 already has fd00::2"):
        reserve(other, ONE, state)
    assert set(listed(pool)) == {"10.1.0.2", "fd00::2"}


def test_requested_addresses(data: str, state: HostState) -> None:
    ipam = small(data, ranges=[[{"subnet": "fd00::/64"}]])
    pool = parse(
        ipam, arguments={"IP": "10.1.0.9"}, args_cni={"ips": ["10.1.0.9/28"]}, runtime={"ips": ["FD00::99/64"]}
    )
    assert shown(preview(pool, ONE, state)) == ["10.1.0.9/28", "fd00::99/64"]
    assert shown(reserve(pool, ONE, state)) == ["10.1.0.9/28", "fd00::99/64"]
    with pytest.raises(Conflict, match=r"requested address 10\.1\.0\.9 of blue is leased to one/eth0"):
        reserve(pool, TWO, state)
    assert shown(reserve(parse(ipam), TWO, state)) == ["10.1.0.2/28", "fd00::2/64"]


def test_request_outside_the_range(data: str, state: HostState) -> None:
    """The range bounds what is allocated; the subnet, its gateway and exclusions bound requests."""
    ipam = small(data, rangeStart="10.1.0.8", rangeEnd="10.1.0.9", exclude=["10.1.0.5"])
    with pytest.raises(ConfigProblem, match=r"is in none of the ranges 10\.1\.0\.8-10\.1\.0\.9"):
        parse(ipam, arguments={"IP": "10.1.0.3"})
    ipam["requestOutsideRange"] = True
    for text, said in (("10.1.0.16", "in none of"), ("10.1.0.15", "in none of"), ("10.1.0.1", "a gateway")):
        with pytest.raises(ConfigProblem, match=said):
            parse(ipam, arguments={"IP": text})
    with pytest.raises(ConfigProblem, match="is excluded"):
        parse(ipam, runtime={"ips": ["10.1.0.5"]})
    requested = parse(ipam, arguments={"IP": "10.1.0.3"})
    assert shown(reserve(requested, ONE, state)) == ["10.1.0.3/28"]
    with pytest.raises(Conflict, match=r"10\.1\.0\.3 of blue is leased to one/eth0"):
        reserve(requested, TWO, state)
    with pytest.raises(Conflict, match=r"one/eth0 already has 10\.1\.0\.3"):
        reserve(parse(ipam), ONE, state)
    assert shown(reserve(parse(ipam), TWO, state)) == ["10.1.0.8/28"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.9.0.1", "is in none of the ranges 10.1.0.1-10.1.0.14"),
        ("10.1.0.1", "is a gateway"),
        ("10.1.0.15", "is in none of the ranges"),
        ("10.1.0.6/28", "is excluded"),
        ("x", "is not an IP address"),
        ("10.1.0.7/99", "is not an IP address"),
        ("10.1.0.7,10.1.0.8", "is a second address of the same set: 10.1.0.7"),
    ],
)
def test_requested_addresses_that_are_refused(data: str, text: str, said: str) -> None:
    ipam = small(data, exclude=["10.1.0.5-10.1.0.6"])
    with pytest.raises(ConfigProblem, match=said) as caught:
        parse(ipam, arguments={"IP": text})
    assert "CNI_ARGS IP" in caught.value.message
    with pytest.raises(ConfigProblem, match=r"runtimeConfig\.ips"):
        parse(ipam, runtime={"ips": text.split(",")})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"dataDir": "networks"}, 'ipam.dataDir "networks" must be an absolute path'),
        ({"resolvConf": "/nonexistent/resolv.conf"}, "ipam.resolvConf .* cannot be read: No such file"),
        ({"routes": [{"gw": "10.1.0.1"}]}, r"ipam.routes\[0\].dst is missing"),
        ({"routes": [{"dst": "10.0.0.1"}]}, r"ipam.routes\[0\].dst .* is not an address with a prefix length"),
        ({"routes": [{"dst": "10.0.0.0/8", "mtu": -1}]}, r"ipam.routes\[0\].mtu -1 must be between"),
    ],
)
def test_problems(data: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        parse(small(data) | more)


def test_the_default_directory() -> None:
    assert parse({"subnet": "10.1.0.0/28"}).directory == "/var/lib/cni/networks/blue"


def test_lacks_names_the_missing_lease(data: str, state: HostState) -> None:
    pool = parse(small(data))
    mine = (ip_interface("10.1.0.2/28"),)
    assert "does not exist" in str(lacks(pool, ONE, mine, state))
    reserve(pool, ONE, state)
    assert lacks(pool, ONE, mine, state) is None
    assert lacks(pool, ONE, (), state) is None
    assert "two/eth0 has no lease" in str(lacks(pool, TWO, (), state))
    assert "10.1.0.2 is leased to one/eth0" in str(lacks(pool, TWO, mine, state))
    assert "10.1.0.3 is not leased" in str(lacks(pool, ONE, (*mine, ip_interface("10.1.0.3/28")), state))
    Path(pool.directory, "10.1.0.2").write_bytes(b"")
    assert "no valid owner" in str(lacks(pool, ONE, mine, state))


def test_status_reports_problems_of_the_directory(data: str, state: HostState, tmp_path: Path) -> None:
    pool = parse(small(data))
    available(pool, state)
    assert not os.path.exists(data)
    Path(data).write_text("a file")
    with pytest.raises(WeftError, match="networks") as caught:
        available(pool, state)
    assert caught.value.code == 50
    with pytest.raises(StateDamaged, match="cannot create the lease directory"):
        reserve(pool, ONE, state)


def test_a_reboot_frees_all_addresses(data: str, state: HostState) -> None:
    pool = parse(small(data))
    for number in range(13):
        reserve(pool, Owner(f"c{number}", "eth0"), state)
    for address, _, _ in owners(pool.directory):
        os.utime(Path(pool.directory, str(address)), (1000, 1000))
    booted = HostState(state.index + "2", time.time() - 60, lambda network, owner: False)
    given = [shown(reserve(pool, Owner(f"c{number}", "eth0"), booted))[0] for number in range(13)]
    assert len(set(given)) == 13


@pytest.mark.parametrize("years", [-60, -10, 10])
def test_a_clock_that_jumps_frees_no_lease_of_an_attachment(data: str, state: HostState, years: int) -> None:
    """The time of the boot is computed from the clock: after a jump all leases seem to be of another boot,
    or of the future. The attachments' records, which have the boot's id, decide.
    """
    pool = parse(small(data))
    for number in range(12):
        reserve(pool, Owner(f"c{number}", "eth0"), state)
    jumped = HostState(state.index + "2", time.time() + years * 31_557_600, lambda network, owner: True)
    reserve(pool, ONE, jumped)
    assert len({address for address, _, _ in owners(pool.directory)}) == 13
    with pytest.raises(PoolExhausted):
        reserve(pool, Owner("one-more", "eth0"), jumped)


def test_an_exhausted_pool_is_reread_after_a_while(
    data: str, state: HostState, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncating a file does not change the directory's mtime; an exhausted pool is read again."""
    pool = parse(small(data))
    for number in range(13):
        reserve(pool, Owner(f"c{number}", "eth0"), state)
    Path(pool.directory, "10.1.0.7").write_bytes(b"")
    monkeypatch.setattr(view_module, "_FRESH", 0.0)
    assert shown(reserve(pool, ONE, state)) == ["10.1.0.7/28"]


def test_a_lease_created_concurrently_by_another_program_is_kept(
    data: str, state: HostState, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = parse(small(data, ranges=[[{"subnet": "fd00::/64"}]]))
    real = Directory.create

    def late(self: Directory, address: Any, owner: Owner) -> bool:
        if str(address) == "fd00::2":
            Path(pool.directory, "fd00::2").write_bytes(b"two\r\neth0")
        return real(self, address, owner)

    monkeypatch.setattr(Directory, "create", late)
    assert shown(reserve(pool, ONE, state)) == ["10.1.0.2/28", "fd00::3/64"]
    assert listed(pool) == {"10.1.0.2": ONE, "fd00::2": TWO, "fd00::3": ONE}


class Beside(RuleBasedStateMachine):
    """Weft and another program that uses the directory as host-local does, against a simple model."""

    small_size = 256

    def __init__(self) -> None:
        super().__init__()
        from tempfile import TemporaryDirectory

        self.place = TemporaryDirectory()
        self.before = view_module.SMALL
        view_module.SMALL = self.small_size
        self.state = HostState(self.place.name + "/index", 0.0, lambda network, owner: True)
        self.pool = parse({"subnet": "10.1.0.0/29", "dataDir": self.place.name + "/data"})
        self.model: dict[str, Owner] = {}
        self.last = 0

    @initialize()
    def start(self) -> None:
        os.makedirs(self.pool.directory)

    @rule(container=st.sampled_from("abcdefg"))
    def add(self, container: str) -> None:
        owner = Owner(container, "eth0")
        order = [*range(self.last + 1, 7), *range(2, self.last + 1)]
        free = [last for last in order if 2 <= last <= 6 and f"10.1.0.{last}" not in self.model]
        if owner in self.model.values():
            with pytest.raises(Conflict):
                reserve(self.pool, owner, self.state)
        elif not free:
            with pytest.raises(PoolExhausted):
                reserve(self.pool, owner, self.state)
        else:
            expected = preview(self.pool, owner, self.state)
            assert shown(reserve(self.pool, owner, self.state)) == [f"10.1.0.{free[0]}/29"] == shown(expected)
            self.model[f"10.1.0.{free[0]}"] = owner
            self.last = free[0]

    @rule(container=st.sampled_from("abcdefg"))
    def delete(self, container: str) -> None:
        freed = release(self.pool.directory, "blue", Owner(container, "eth0"), self.state)
        mine = {address for address, owner in self.model.items() if owner.container == container}
        assert {str(each) for each in freed} == mine
        for address in mine:
            del self.model[address]

    @rule(container=st.sampled_from("hij"), last=st.integers(2, 6))
    def another_adds(self, container: str, last: int) -> None:
        address, owner = f"10.1.0.{last}", Owner(container, "eth0")
        if address in self.model or owner in self.model.values():
            return
        with self.locked():
            Path(self.pool.directory, address).write_bytes(f"{container}\r\neth0".encode())
            Path(self.pool.directory, "last_reserved_ip.0").write_text(address)
        self.model[address] = owner
        self.last = last

    @rule(last=st.integers(2, 6))
    def another_deletes(self, last: int) -> None:
        with self.locked():
            Path(self.pool.directory, f"10.1.0.{last}").unlink(missing_ok=True)
        self.model.pop(f"10.1.0.{last}", None)

    @rule(last=st.integers(2, 6), content=st.sampled_from([b"", b"\0\0", b"a\r\n"]))
    def a_crash_leaves_a_file(self, last: int, content: bytes) -> None:
        if f"10.1.0.{last}" not in self.model:
            Path(self.pool.directory, f"10.1.0.{last}").write_bytes(content)

    @rule()
    def the_index_is_wiped(self) -> None:
        for file in Path(self.state.index).glob("*"):
            file.unlink()

    def locked(self) -> Any:
        lock = open(self.pool.directory + "/lock", "w")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def teardown(self) -> None:
        assert listed(self.pool) == self.model
        view_module.SMALL = self.before
        self.place.cleanup()


class BesideIndexed(Beside):
    small_size = 0


TestBeside, TestBesideIndexed = Beside.TestCase, BesideIndexed.TestCase
TestBeside.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestBesideIndexed.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
