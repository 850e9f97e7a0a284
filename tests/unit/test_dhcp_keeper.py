"""The keeper of DHCP leases without a network: its socket, when it exits, and failed renewals."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cni_plugin.dhcp.keeper import Keeper, attempt, main
from ipam import dhcp_client
from ipam.dhcp_client import ClientOptions, Lease
from ipam.dhcp_leases import LeaseFiles, StoredLease
from ipam.dhcp_messages import Kind, Message, Option
from weft.daemon_socket import AlreadyRunning, DaemonSocket
from weft.daemons import REFRESHED
from weft.types import NamespaceId


def held(since: float, key: str = "k") -> StoredLease:
    """A lease of two minutes for a container that no longer exists."""
    options = {
        Option.SUBNET_MASK: b"\xff\xff\xff\0", Option.SERVER_ID: b"\xc0\0\2\1", Option.LEASE_TIME: b"\0\0\0\x78",
    }  # fmt: skip
    message = Message(
        Kind.ACK, 7, "02:00:00:00:00:01", yours=IPv4Address("192.0.2.5"), reply=True,
        options={int(number): data for number, data in options.items()},
    )  # fmt: skip
    lease = Lease(message, IPv4Address("192.0.2.1"), "02:00:00:00:00:99", since)
    options = ClientOptions(b"\0me", (), (1,))
    return StoredLease(key, "c1/eth0 on net", NamespaceId("/nowhere", 4, 7), "eth0", options, lease)


@pytest.fixture
def leases(tmp_path: Path) -> LeaseFiles:
    made = LeaseFiles(str(tmp_path / "dhcp"))
    made.prepare()
    return made


def said(folder: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(f"{folder}/keeper.sock")
        return connection.recv(100)


def test_it_exits_without_leases(leases: LeaseFiles) -> None:
    place = DaemonSocket(leases.folder, "keeper")
    keeper = Keeper(place, leases, idle=0.2)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    assert said(leases.folder) == REFRESHED
    assert os.stat(place.path).st_mode & 0o777 == 0o600
    thread.join(10)
    assert not thread.is_alive() and not os.path.exists(place.path)


def test_it_runs_while_there_is_a_lease_and_stops_on_request(leases: LeaseFiles) -> None:
    leases.write(held(dhcp_client.now()))
    keeper = Keeper(DaemonSocket(leases.folder, "keeper"), leases, idle=0.0)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    time.sleep(0.3)
    assert said(leases.folder) == REFRESHED
    keeper.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_it_exits_when_its_socket_was_unlinked(leases: LeaseFiles) -> None:
    leases.write(held(dhcp_client.now()))
    place = DaemonSocket(leases.folder, "keeper")
    keeper = Keeper(place, leases)
    os.unlink(place.path)
    keeper.run()


def test_a_second_keeper_is_refused(leases: LeaseFiles) -> None:
    place = DaemonSocket(leases.folder, "keeper")
    with pytest.raises(AlreadyRunning):
        DaemonSocket(leases.folder, "keeper")
    place.close()


def test_a_failed_renewal_is_retried_until_the_lease_expires(leases: LeaseFiles) -> None:
    """The namespace may only be unreachable: the lease is kept until it expires."""
    lines: list[str] = []
    now = dhcp_client.now()
    again = attempt(held(now - 70), lines.append)
    assert again is not None and again.last_attempt >= now and not again.lost
    assert again.next_attempt is not None and again.next_attempt > now
    assert attempt(replace(again, lease=held(now - 130).lease), lines.append) is None
    assert "not renewed" in lines[0] and "expired" in lines[1]


def test_leases_that_expired_without_a_keeper_are_removed_at_start(leases: LeaseFiles) -> None:
    leases.write(held(dhcp_client.now() - 500))
    keeper = Keeper(DaemonSocket(leases.folder, "keeper"), leases, idle=0.1)
    keeper.run()
    assert leases.all() == [] and os.listdir(leases.folder) == ["keeper.lock"]


def test_an_unknown_option_prints_the_usage(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--nonsense"]) == 2
    assert "usage: weft dhcp" in capfd.readouterr().err
