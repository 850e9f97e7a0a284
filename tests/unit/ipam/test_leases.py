from __future__ import annotations

import os
import stat
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipam import directory as directory_module
from ipam import view as view_module
from ipam.directory import Directory, as_address
from ipam.index import Index
from ipam.leases import HostState, Owner, open_locked, open_readonly, owners, release, release_address
from ipam.values import owner_text, parse_owner
from weft.errors import Busy, StateDamaged
from weft.locks import hold
from weft.types import Address

ONE, TWO = Owner("one", "eth0"), Owner("two", "eth0")
A, B, C = (ip_address(f"10.1.0.{last}") for last in (2, 3, 4))


@pytest.fixture
def state(tmp_path: Path) -> HostState:
    return HostState(str(tmp_path / "index"), 0.0, lambda network, owner: True)


@pytest.fixture
def path(tmp_path: Path) -> str:
    where = tmp_path / "blue"
    where.mkdir()
    return str(where)


@pytest.fixture(params=["read", "indexed"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both views of the taken addresses: the directory listing, and the index."""
    if request.param == "indexed":
        monkeypatch.setattr(view_module, "SMALL", 0)
    return str(request.param)


def put(path: str, address: object, content: bytes) -> None:
    """Write a file as host-local or an administrator would."""
    Path(path, str(address)).write_bytes(content)


def listed(path: str) -> dict[str, Owner]:
    return {str(address): owner for address, owner, _ in owners(path)}


@pytest.mark.parametrize(
    ("content", "owner"),
    [
        (b"one\r\neth0", ONE),
        (b"one\r\neth0\n", ONE),
        (b"one\n", Owner("one", "")),
        (b"one", Owner("one", "")),
        (b"", None),
        (b"\0" * 20, None),
        (b"one\r\n", None),
        (b"one\r\n\0\0\0\0", None),
        (b"\r\neth0", None),
        (b"one\x1b\r\neth0", None),
        (b"\xff\xfe", None),
        (b"two words", None),
    ],
)
def test_owners_in_the_format_of_host_local(content: bytes, owner: Owner | None) -> None:
    assert parse_owner(content) == owner


@given(
    st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,70}", fullmatch=True), st.sampled_from(["eth0", "-x", 'a"b', "v.10"])
)
def test_owners_round_trip(container: str, interface: str) -> None:
    assert parse_owner(owner_text(Owner(container, interface))) == Owner(container, interface)


@pytest.mark.parametrize(
    "name",
    ["lock", "last_reserved_ip.0", "10.0.0.01", "10.0.0.256", "10.0.0", "fd00:0::1", "FD00::1", "fe80::1%lo", ""],
)
def test_file_names_that_are_no_addresses(name: str) -> None:
    assert as_address(name) is None


def test_lease_files_have_the_format_of_host_local(path: str, state: HostState, size: str) -> None:
    with open_locked(path, "blue", state) as leases:
        assert leases.lease((A, ip_address("fd00::5")), ONE)
    assert Path(path, "10.1.0.2").read_bytes() == b"one\r\neth0"
    assert stat.S_IMODE(os.stat(Path(path, "fd00::5")).st_mode) == 0o600
    assert set(os.listdir(path)) == {"10.1.0.2", "fd00::5", "lock"}
    with open_locked(path, "blue", state) as leases:
        assert set(leases.addresses_of(ONE)) == {A, ip_address("fd00::5")}
        assert leases.first_free_from(4, int(A)) == int(B)
        assert leases.first_free_from(6, int(ip_address("fd00::4"))) == int(ip_address("fd00::4"))


def test_the_lock_file_is_that_of_host_local(path: str, state: HostState) -> None:
    before = os.umask(0o022)
    try:
        with open_locked(path, "blue", state):
            assert stat.S_IMODE(os.stat(Path(path, "lock")).st_mode) == 0o750
            too_long = pytest.raises(Busy, match="locked for too long by process")
            with too_long, open_locked(path, "blue", state, timeout=0):
                pass
    finally:
        os.umask(before)


def test_several_addresses_are_leased_all_or_none(path: str, state: HostState, size: str) -> None:
    put(path, B, b"two\r\neth0")
    with open_locked(path, "blue", state) as leases:
        assert not leases.lease((A, B), ONE)
        assert leases.lease((C,), ONE)
    assert listed(path) == {str(B): TWO, str(C): ONE}


def test_a_failed_write_leaves_no_file(path: str, state: HostState, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = directory_module._fill, []

    def full(descriptor: int, content: bytes) -> None:
        calls.append(content)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor, content)

    monkeypatch.setattr(directory_module, "_fill", full)
    with (
        pytest.raises(StateDamaged, match=r"cannot write .*10\.1\.0\.3: No space left"),
        open_locked(path, "blue", state) as leases,
    ):
        leases.lease((A, B), ONE)
    assert os.listdir(path) == ["lock"]


def test_without_o_tmpfile_files_are_created_as_by_host_local(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that open(".") fails with EISDIR.
    monkeypatch.setattr(directory_module.os, "O_TMPFILE", os.O_RDONLY)
    with Directory(path) as directory:
        assert directory.create(A, ONE)
        assert not directory.create(A, TWO)
        found = directory.read(A)
        assert found is not None
        assert found.owner == ONE


def test_release_frees_only_addresses_of_the_owner(path: str, state: HostState, size: str) -> None:
    with open_locked(path, "blue", state) as leases:
        leases.lease((A,), ONE)
        leases.lease((B,), TWO)
        leases.lease((C,), Owner("one", "eth1"))
    assert release(path, "blue", ONE, state) == (A,)
    assert release(path, "blue", ONE, state) == ()
    assert listed(path) == {str(B): TWO, str(C): Owner("one", "eth1")}


def test_old_leases_without_interface_are_honoured(path: str, state: HostState, size: str) -> None:
    put(path, A, b"one")
    with open_locked(path, "blue", state) as leases:
        assert leases.first_free_from(4, int(A)) == int(B)
    assert release(path, "blue", ONE, state) == (A,)


def test_reading_a_missing_directory_does_not_create_it(tmp_path: Path, state: HostState) -> None:
    missing = str(tmp_path / "none" / "blue")
    assert release(missing, "blue", ONE, state) == ()
    assert not release_address(missing, A, ONE, state)
    assert list(owners(missing)) == []
    assert not (tmp_path / "none").exists()


def test_a_failed_release_is_an_error(path: str, state: HostState, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(path, A, b"one\r\neth0")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(directory_module.os, "unlink", refuse)
    with pytest.raises(StateDamaged, match=r"cannot remove .*10\.1\.0\.2: Read-only file system"):
        release(path, "blue", ONE, state)
    assert release(path, "blue", TWO, state) == ()


@pytest.mark.parametrize("what", ["directory", "full", "dangling", "fifo"])
def test_a_directory_or_link_instead_of_the_lock_is_replaced(path: str, state: HostState, what: str) -> None:
    lock = Path(path, "lock")
    if what == "directory":
        lock.mkdir()
    elif what == "full":
        Path(lock, "sub").mkdir(parents=True)
    elif what == "fifo":
        os.mkfifo(lock)
    else:
        lock.symlink_to("/nonexistent/lock")
    with open_locked(path, "blue", state) as leases:
        assert leases.lease((A,), ONE)
    assert stat.S_ISREG(os.lstat(lock).st_mode)


def test_one_address_is_freed_only_from_its_owner(path: str, state: HostState, size: str) -> None:
    put(path, A, b"one\r\neth0")
    assert not release_address(path, A, TWO, state)
    assert release_address(path, A, ONE, state)
    assert not release_address(path, A, ONE, state)


def test_damaged_lease_files_are_reclaimed(path: str, state: HostState, size: str) -> None:
    put(path, "10.1.0.10", b"")
    put(path, "10.1.0.11", b"\0" * 30)
    put(path, "10.1.0.12", b"one\r\n")
    os.mkdir(Path(path, "10.1.0.13"))
    Path(path, "10.1.0.14").symlink_to("/nonexistent")
    os.mkfifo(Path(path, "10.1.0.15"))
    os.mkdir(Path(path, "10.1.0.16"))
    put(path, "10.1.0.16/file", b"")
    with open_locked(path, "blue", state) as leases:
        assert [leases.first_free_from(4, int(ip_address("10.1.0.0")) + last) & 255 for last in range(10, 17)] == [
            10, 11, 12, 13, 14, 15, 17
        ]  # fmt: skip
    assert set(os.listdir(path)) == {"lock", "10.1.0.16"}


def test_open_readonly_changes_nothing(path: str, state: HostState, size: str) -> None:
    put(path, A, b"")
    put(path, B, b"two\r\neth0")
    before = (os.stat(path).st_mtime_ns, sorted(os.listdir(path)))
    with open_readonly(path, "blue", state) as leases:
        assert leases.first_free_from(4, int(A)) == int(A)
        assert leases.first_free_from(4, int(B)) == int(C)
    assert (os.stat(path).st_mtime_ns, sorted(os.listdir(path))) == before
    assert not os.path.exists(state.index)


class TestReboot:
    """Leases from before this boot with unknown owners are reclaimed, once per boot."""

    def set_up(self, path: str) -> float:
        now = time.time()
        for address, owner, age in ((A, ONE, 500), (B, TWO, 500), (C, Owner("three", "eth0"), 10)):
            put(path, address, owner_text(owner))
            os.utime(Path(path, str(address)), (now - age, now - age))
        return now - 100

    def test_leases_of_unknown_owners_are_freed_and_others_kept(self, path: str, tmp_path: Path, size: str) -> None:
        asked = []

        def alive(network: str, owner: Owner) -> bool:
            asked.append((network, owner))
            return owner == TWO

        state = HostState(str(tmp_path / "index"), self.set_up(path), alive)
        with open_locked(path, "blue", state) as leases:
            assert leases.addresses_of(ONE) == ()
            assert leases.addresses_of(TWO) == (B,)
        assert sorted(asked, key=str) == [("blue", ONE), ("blue", TWO)]
        assert set(listed(path)) == {str(B), str(C)}

    def test_setting_the_clock_forward_later_frees_nothing(
        self, path: str, state: HostState, tmp_path: Path, size: str
    ) -> None:
        self.set_up(path)
        with open_locked(path, "blue", state):
            pass
        later = HostState(state.index, time.time() + 10_000_000, lambda network, owner: False)
        with open_locked(path, "blue", later) as leases:
            leases.reread()
        assert len(listed(path)) == 3

    def test_open_readonly_ignores_them_without_freeing(self, path: str, tmp_path: Path) -> None:
        state = HostState(str(tmp_path / "index"), self.set_up(path), lambda network, owner: False)
        with open_readonly(path, "blue", state) as leases:
            assert leases.first_free_from(4, int(A)) == int(A)
            assert leases.first_free_from(4, int(C)) == int(C) + 1
        assert len(listed(path)) == 3


class TestIndex:
    @pytest.fixture(autouse=True)
    def always(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(view_module, "SMALL", 0)

    def used(self, path: str, state: HostState, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether a call uses the index instead of reading all files."""
        reads: list[object] = []
        real = Directory.scan
        with monkeypatch.context() as patch:
            patch.setattr(Directory, "scan", lambda *values: reads.append(values) or real(*values))
            with open_locked(path, "blue", state):
                pass
        return not reads

    def test_it_is_valid_until_another_program_changes_files(
        self, path: str, state: HostState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_locked(path, "blue", state) as leases:
            leases.lease((A, B), ONE)
        assert self.used(path, state, monkeypatch)
        release(path, "blue", ONE, state)
        assert self.used(path, state, monkeypatch)
        put(path, A, b"two\r\neth0")
        assert not self.used(path, state, monkeypatch)
        assert self.used(path, state, monkeypatch)
        os.unlink(Path(path, str(A)))
        assert not self.used(path, state, monkeypatch)

    @pytest.mark.parametrize("keep", [0, 100, 5000, -1])
    def test_it_may_be_damaged_or_missing(self, path: str, state: HostState, keep: int) -> None:
        with open_locked(path, "blue", state) as leases:
            leases.lease((A, C), ONE)
        [index] = Path(state.index).glob("*.index")
        whole = index.read_bytes()
        if keep < 0:
            index.unlink()
        else:
            index.write_bytes(whole[:keep] + b"\xa5" * (len(whole) - keep))
        with open_locked(path, "blue", state) as leases:
            assert leases.first_free_from(4, int(A)) == int(B)
            assert leases.lease((B,), TWO)
        assert release(path, "blue", ONE, state) in ((A, C), (C, A))
        assert listed(path) == {str(B): TWO}

    def test_a_kill_before_it_is_written_makes_it_invalid(
        self, path: str, state: HostState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_locked(path, "blue", state) as leases:
            leases.lease((A,), ONE)
        with pytest.raises(KeyboardInterrupt), open_locked(path, "blue", state) as leases:
            leases.lease((B,), TWO)
            raise KeyboardInterrupt
        assert not self.used(path, state, monkeypatch)
        with open_locked(path, "blue", state) as leases:
            assert leases.addresses_of(TWO) == (B,)

    def test_its_owners_are_verified_with_the_files(self, path: str, state: HostState) -> None:
        with open_locked(path, "blue", state) as leases:
            leases.lease((A,), ONE)
        put(path, A, b"two\r\neth0")  # in place: the directory's mtime does not change
        assert release(path, "blue", ONE, state) == ()
        assert listed(path) == {str(A): TWO}
        assert release(path, "blue", TWO, state) == (A,)

    def test_its_path_may_be_unusable(self, path: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        state = HostState(str(tmp_path / "file" / "index"), 0.0, lambda network, owner: True)
        for owner, address in ((ONE, A), (TWO, B)):
            with open_locked(path, "blue", state) as leases:
                assert leases.lease((address,), owner)
        assert release(path, "blue", ONE, state) == (A,)


NUMBERS = st.integers(0, 40) | st.integers(2**32 - 6, 2**32 - 1)


class IndexModel(RuleBasedStateMachine):
    """The intervals of an index against a set."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index(":memory:")
        self.index.build([], (1, 2, 3))
        self.taken: dict[int, Owner] = {}

    @rule(number=NUMBERS, owner=st.sampled_from([ONE, TWO]))
    def add(self, number: int, owner: Owner) -> None:
        if number not in self.taken:
            self.index.add(as_v4(number), owner)
            self.taken[number] = owner

    @rule(number=NUMBERS)
    def discard(self, number: int) -> None:
        self.index.discard(as_v4(number))
        self.taken.pop(number, None)

    @rule()
    def build_anew(self) -> None:
        self.index.close()
        self.index = Index(":memory:")
        self.index.build(((as_v4(number), owner) for number, owner in self.taken.items()), (1, 2, 3))

    @rule(number=NUMBERS)
    def first_free_from(self, number: int) -> None:
        expected = number
        while expected in self.taken:
            expected += 1
        assert self.index.first_free_from(4, number) == expected
        assert self.index.first_free_from(6, number) == number

    @invariant()
    def owners_are_right(self) -> None:
        for owner in (ONE, TWO):
            assert {int(each) for each in self.index.addresses_of(owner)} == {
                number for number, each in self.taken.items() if each == owner
            }

    def teardown(self) -> None:
        self.index.close()


def as_v4(number: int) -> Address:
    from ipaddress import IPv4Address

    return IPv4Address(number)


TestIndexModel = IndexModel.TestCase
TestIndexModel.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


def test_a_held_lock_is_waited_for(path: str, state: HostState) -> None:
    with hold(os.path.join(path, "lock")), pytest.raises(Busy), open_locked(path, "blue", state, timeout=0.01):
        pass
    with open_locked(path, "blue", state, timeout=0.01) as leases:
        assert leases.lease((A,), ONE)


@pytest.mark.parametrize("there", ["garbage", "empty", "directory", "dangling", "fifo", "hardlink", "longer"])
def test_last_reserved_ip_may_be_anything(path: str, there: str, tmp_path: Path) -> None:
    pointer = Path(path, "last_reserved_ip.0")
    other = tmp_path / "precious"
    other.write_text("precious")
    match there:
        case "garbage":
            pointer.write_bytes(b"\xff\0garbage")
        case "empty":
            pointer.write_bytes(b"")
        case "directory":
            pointer.mkdir()
        case "dangling":
            pointer.symlink_to("/nonexistent/file")
        case "fifo":
            os.mkfifo(pointer)
        case "hardlink":
            os.link(other, pointer)
        case "longer":
            pointer.write_text("10.1.0.100")
    with Directory(path) as directory:
        assert directory.last_reserved(0) == (ip_address("10.1.0.100") if there == "longer" else None)
        directory.set_last_reserved(0, A)
        assert directory.last_reserved(0) == A
    assert pointer.read_bytes() == b"10.1.0.2"
    assert other.read_text() == "precious"
