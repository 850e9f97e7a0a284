"""Records round-trip, and a damaged file is quarantined and never used."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from dataclasses import fields, is_dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from cni_plugin import ops
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops import Elements
from cni_plugin.ops.ports import ConntrackFlush, ConntrackFlushOnUndo, PublishedPort
from cni_plugin.service import codec
from cni_plugin.service import records as records_module
from cni_plugin.service.records import NetworkRecord, Phase, Record, Records
from lab.calls import Weft
from lab.cases import CASES, Case, Conf
from lab.ground import vlan_documents
from lab.plugins import ROOT
from weft import overlay, types
from weft.errors import StateDamaged
from weft.kernel import values as values_module
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer
from weft.kernel.values import Element, KernelRoute
from weft.types import Attachment, NamespaceId, Route

ATTACHMENT = Attachment("red", "c1", "eth0", "bridge")
RECORD = Record(ATTACHMENT, NamespaceId("/c1", 4, 7), Phase.ADDING, "boot", 1.5, "bridge", "1.1.0")


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(str(tmp_path / "run"))
    made.prepare()
    return made


def _placed(conf: Conf, folder: Path) -> Conf:
    """The configuration, with its leases in a directory of the test."""
    return {**conf, "ipam": {**conf["ipam"], "dataDir": str(folder)}} if "ipam" in conf else dict(conf)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operation_survives(
    case: Case, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of every driver is equal after writing and reading it."""
    shutil.copytree(ROOT / "conf" / "overlay", tmp_path / "overlay")
    vlan_documents(tmp_path / "overlay")
    monkeypatch.setattr(overlay, "FOLDER", str(tmp_path / "overlay"))
    settings = tmp_path / "weft.toml"
    settings.write_text(case.settings)
    monkeypatch.setenv("WEFT_CONFIG", str(settings))
    kernel = FakeKernel()
    space = kernel.add("/c1")
    if case.wired:
        kernel.host.add_link("lan0", "veth", up=True, peer=VethPeer("far", up=True))
        kernel.host.add_address("lan0", ip_interface("192.0.2.1/24"))
        way = Route(ip_network("0.0.0.0/0"), ip_address("192.0.2.2"))
        kernel.host.add_route(KernelRoute(way, "lan0"))
    weft = Weft(kernel, Host(str(tmp_path / "state"), "boot", 0.0))
    conf, first = (_placed(one, tmp_path) for one in (case.conf, case.first))
    if first:
        conf["prevResult"] = weft.add(first, "/c1")
        # The fake has the sysctls that weft's drivers use; the case of tuning needs these as well.
        space.links_by_name["eth0"].sysctls["net/ipv4/conf/arp_filter"] = "0"
        space.sysctls["net/ipv4/ip_local_port_range"] = "32768 60999"
    planned = weft.preview(conf, "/c1")
    assert planned.operations
    for phase in Phase:
        record = replace(planned, phase=phase)
        records.write(record)
        assert records.read(record.attachment) == record
    network = NetworkRecord(case.conf["name"], "boot", planned.shared)
    records.write_network(network)
    assert records.read_network(case.conf["name"]) == network
    assert list(records.networks()) == [network]


def test_operations_of_earlier_releases_are_read_by_their_former_names(records: Records) -> None:
    port = PublishedPort("udp", 8053, ip_address("10.0.0.2"), 53, ip_address("192.0.2.1"))
    record = replace(RECORD, operations=(ConntrackFlushOnUndo((port,)), ConntrackFlush((port,))))
    records.write(record)
    path = Path(records.path(ATTACHMENT))
    body = path.read_bytes().partition(b"\n")[2]
    former = body.replace(b'"ConntrackFlushOnUndo"', b'"EndedFlows"').replace(b'"ConntrackFlush"', b'"FreshFlows"')
    assert former.count(b"Flows") == 2 and b"Conntrack" not in former
    path.write_bytes(_checked(former))
    assert records.read(ATTACHMENT) == record
    assert records.read(ATTACHMENT) is not record


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
def test_a_record_of_an_earlier_release_has_the_present_names_of_sets(
    case: Case, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record names the sets of its elements; renamed sets are read by their present names."""
    elements = tuple(Element(name, ("cni0",), (), "weft:00112233445566aa") for name in TABLES.shapes)
    former = {name: old for old, name in TABLES.renamed.items()}
    written = Elements(tuple(replace(one, collection=former.get(one.collection, one.collection)) for one in elements))
    network = NetworkRecord(case.conf["name"], "boot", (written,))
    records.write_network(network)
    monkeypatch.setattr(records_module, "_cache_of_networks", {})
    assert records.read_network(network.network) == replace(network, shared=(Elements(elements),))


def test_removal_is_idempotent(records: Records) -> None:
    records.write(RECORD)
    records.remove(ATTACHMENT)
    records.remove(ATTACHMENT)
    assert records.read(ATTACHMENT) is None
    assert records.stray_files() == []


def _checked(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x}\n".encode() + body


DAMAGES = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "text": b"hello",
    "no body": b"00000000\n",
    "not JSON": _checked(b"{"),
    "a list": _checked(b"[]"),
    "no record": _checked(b'{"schema": 1}'),
    "unknown kind": _checked(b'{"schema": 1, "record": {"kind": "Popen", "args": ["id"]}}'),
    "another kind": _checked(b'{"schema": 1, "record": {"kind": "NetworkRecord", "network": "a", "boot": "b"}}'),
    "missing values": _checked(b'{"schema": 1, "record": {"kind": "Record"}}'),
    "unknown values": _checked(b'{"schema": 1, "record": {"kind": "NamespaceId", "path": "x", "more": 1}}'),
    "no address": _checked(b'{"schema": 1, "record": {"=": "x", "kind": "address"}}'),
    "nested too deep": _checked(b'{"schema": 1, "record": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_set_aside(records: Records, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path(records.path(ATTACHMENT))
    path.write_bytes(DAMAGES[damage])
    assert records.read(ATTACHMENT) is None
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == DAMAGES[damage]
    assert str(path) in capfd.readouterr().err
    assert list(records.all()) == []
    assert records.stray_files() == [str(path.with_suffix(".damaged"))]


OPERATION = Elements((Element("ports4", ("tcp", 80), (ip_address("10.0.0.2"), 80), "weft:00112233445566aa"),))


def test_operations_of_all_are_decoded_when_they_are_used(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(RECORD, operations=(OPERATION,), shared=(OPERATION,))
    other = replace(record, attachment=replace(ATTACHMENT, container="c2"), operations=())
    for each in (record, other):
        records.write(each)
    monkeypatch.setattr(records_module, "_cache", {})
    with monkeypatch.context() as patched:
        patched.delattr(Elements, "__init__")  # none can be made
        found = {one.attachment: one for one in records.all()}
        assert [one.namespace for one in found.values()] == [RECORD.namespace] * 2
        assert [found[one.attachment].may_have("ports4", "x") for one in (record, other)] == [True, False]
        assert not found[ATTACHMENT].may_have("ports", "ports6")
    assert found == {ATTACHMENT: record, other.attachment: other}
    assert found[ATTACHMENT].shared is found[other.attachment].shared


def test_an_element_is_decoded_without_its_own_initialization() -> None:
    """Which takes twice as long for a frozen class: it is a tenth of ``weft check``."""
    text = codec.encode(tuple(Element("masquerade4", (f"veth{number}",), (), "weft:1") for number in range(100)))
    document, kinds = json.loads(text), records_module._kinds()
    expected = codec.decode(document, kinds)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, given: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        found = codec.decode(document, kinds)
    finally:
        sys.setprofile(None)
    assert found == expected == tuple(Element("masquerade4", (f"veth{number}",), (), "weft:1") for number in range(100))
    assert "__init__" not in calls and len(calls) > 100


def test_former_names_are_found_in_operations_that_are_not_decoded(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write(replace(RECORD, operations=(OPERATION,)))
    path = Path(records.path(ATTACHMENT))
    body = path.read_bytes().partition(b"\n")[2].replace(b'"ports4"', b'"loopback4"')
    path.write_bytes(_checked(body))
    monkeypatch.setattr(records_module, "_cache", {})
    [found] = records.all()
    assert found.may_have("loopback_ports4") and not found.may_have("ports4")


def test_damaged_operations_are_set_aside_when_they_are_used(records: Records) -> None:
    records.write(replace(RECORD, operations=(OPERATION,)))
    path = Path(records.path(ATTACHMENT))
    body = path.read_bytes().partition(b"\n")[2].replace(b'"kind": "Elements"', b'"kind": "Popen"')
    path.write_bytes(_checked(body))
    [found] = records.all()
    assert (found.attachment, found.shared, path.exists()) == (ATTACHMENT, (), True)
    assert (found.operations, path.exists(), path.with_suffix(".damaged").exists()) == ((), False, True)
    path.write_bytes(_checked(body))
    assert records.read(ATTACHMENT) is None and not path.exists()


def test_fields_in_another_order_are_decoded_at_once(records: Records) -> None:
    """Of a release whose records have other fields, or these twice."""
    record = replace(RECORD, operations=(OPERATION,), shared=(OPERATION,))
    records.write(record)
    path = Path(records.path(ATTACHMENT))
    document = json.loads(path.read_bytes().partition(b"\n")[2])
    for names in (sorted(document["record"]), sorted(document["record"], reverse=True)):
        path.write_bytes(
            _checked(json.dumps({"schema": 1, "record": {n: document["record"][n] for n in names}}).encode())
        )
        assert records.read(ATTACHMENT) == record == next(records.all())


def test_any_changed_or_missing_byte_is_detected(records: Records) -> None:
    """A record with one byte changed, or truncated anywhere, is never used."""
    path = Path(records.path(ATTACHMENT))
    records.write(RECORD)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        for broken in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(broken)
            found = records.read(ATTACHMENT)
            assert found is None or found == RECORD, place
    path.write_bytes(whole)
    assert records.read(ATTACHMENT) == RECORD


def test_a_record_of_a_newer_schema_is_left_unchanged(records: Records) -> None:
    path = Path(records.path(ATTACHMENT))
    newer = _checked(json.dumps({"schema": records_module.SCHEMA + 1, "record": {"whatever": 1}}).encode())
    path.write_bytes(newer)
    with pytest.raises(StateDamaged, match=f"schema {records_module.SCHEMA + 1}, this release reads up to"):
        records.read(ATTACHMENT)
    assert path.read_bytes() == newer


@pytest.mark.parametrize("schema", range(1, records_module.SCHEMA))
def test_a_record_of_an_earlier_schema_is_read(records: Records, schema: int) -> None:
    path = Path(records.path(ATTACHMENT))
    records.write(RECORD)
    body = (
        path.read_bytes()
        .partition(b"\n")[2]
        .replace(f'"schema": {records_module.SCHEMA},'.encode(), f'"schema": {schema},'.encode())
    )
    path.write_bytes(_checked(body))
    assert records.read(ATTACHMENT) == RECORD


FIELDS = {3: "1e0db301"}
"""The checksum of the classes that records may contain, and of their fields, by schema."""


def test_other_fields_have_another_schema() -> None:
    """Otherwise an earlier release takes the records for damaged, renames them, and loses the attachments."""
    kinds = (getattr(ops, name) for name in sorted(ops.__all__) if name not in ("COMMON", "rare"))
    values = (one for module in (types, values_module) for one in vars(module).values())
    found = {
        one.__name__: [each.name for each in fields(one)]
        for one in (Record, NetworkRecord, *kinds, *values)
        if isinstance(one, type) and is_dataclass(one) and one is not values_module.Link  # which is only answered
    }
    checksum = f"{zlib.crc32(json.dumps(found, sort_keys=True).encode()):08x}"
    assert FIELDS.get(records_module.SCHEMA) == checksum, "raise SCHEMA of records, and add the checksum here"


def test_a_write_that_fails_leaves_the_old_record(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(RECORD)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StateDamaged, match="No space left"):
            records.write(replace(RECORD, phase=Phase.ATTACHED))
    assert records.read(ATTACHMENT) == RECORD
    assert records.stray_files() == []


def test_symbolic_links_are_not_followed(records: Records, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    Path(records.path(ATTACHMENT)).with_suffix(".tmp").symlink_to(target)
    records.write(RECORD)
    assert target.read_text() == "mine"
    assert records.read(ATTACHMENT) == RECORD


def test_files_have_mode_0600(records: Records, tmp_path: Path) -> None:
    records.write(RECORD)
    assert Path(records.path(ATTACHMENT)).stat().st_mode & 0o777 == 0o600
    assert Path(records.path(ATTACHMENT)).parent.stat().st_mode & 0o777 == 0o700


def test_attachments_do_not_share_files(records: Records) -> None:
    others = [
        replace(ATTACHMENT, network="blue"), replace(ATTACHMENT, container="c2"),
        replace(ATTACHMENT, interface="eth1"), replace(ATTACHMENT, plugin="portmap"),
    ]  # fmt: skip
    paths = {records.path(one) for one in (ATTACHMENT, *others)} | {records.lock(one) for one in (ATTACHMENT, *others)}
    assert len(paths) == 10
