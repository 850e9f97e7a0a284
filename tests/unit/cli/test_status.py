"""weft status without an agent, and what the agent's page shows of attachments without names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cni_plugin.agent.attachments import _joined
from cni_plugin.agent.recorded import Recorded
from cni_plugin.cli import agents, engine, status
from discovery.page.overview import AttachmentSummary
from weft.errors import WeftError


@pytest.fixture
def alone(run, monkeypatch):
    """No daemon runs, and the kernel serves no virtual address."""
    monkeypatch.setattr(agents, "running", lambda: None)
    monkeypatch.setattr(agents, "catalog_damages", list)
    monkeypatch.setattr(agents, "virtual_addresses_in_kernel", lambda: 0)
    monkeypatch.setattr(engine, "running", lambda: None)
    return run


def test_without_names_nothing_needs_an_agent(alone, monkeypatch) -> None:
    assert "No warnings." in alone.good("status")
    alone.good("network", "create", "blue", "--subnet", "10.7.0.0/24")
    alone.container("c1")
    alone.good("attach", "blue", "c1")
    assert "No warnings." in alone.good("status")
    # A network that no file defines any more counts as long as something is attached to it.
    (alone.config / "blue.conflist").unlink()
    assert alone("status", "--json").json["networks"] == 1
    monkeypatch.setattr(agents, "virtual_addresses_in_kernel", lambda: 2)
    said = alone("status")
    assert said.code == 1
    assert "agent not running, the kernel serves 2 virtual addresses as it was last told: " in said.out
    assert alone("status", "--json").json["virtualAddresses"] == 2


def test_names_need_an_agent(alone) -> None:
    names = alone.folder / "run" / "names"
    names.mkdir(parents=True)
    (names / "0123456789abcdef.json").write_text("{}")
    said = alone("status")
    assert (said.code, "agent not running, 1 attachment with names or services: " in said.out) == (1, True)


def test_attachments_without_names_are_read_from_their_records(run) -> None:
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24", "--internal")
    run.container("c1")
    run.good("attach", "blue", "c1")
    recorded = Recorded(run.service.host.run)
    [one] = recorded.read()
    assert (one.network, one.container, one.interface) == ("blue", "weft-c1", "eth0")
    assert (one.addresses, one.internal, one.names) == (("10.7.0.2/24",), True, ())
    assert len(one.owner) == 16
    # The announced one of the same interface has the names, and stands for both.
    announced = AttachmentSummary("owner", "blue", "weft-c1", "eth0", names=("c1",))
    other = AttachmentSummary("owner", "blue", "weft-c2", "eth0")
    assert _joined([announced], [one]) == [announced]
    assert _joined([other], [one]) == [one, other]
    run.good("detach", "blue", "c1")
    assert recorded.read() == []


def test_an_agent_of_another_release_is_replaced_as_doctor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> list[object]:
        raise WeftError("no answer")

    monkeypatch.setattr(status, "all_instances", fail)
    report = SimpleNamespace(problems=(), version="0.3.0")
    warnings: list[str] = []
    status._services(SimpleNamespace(report=report, client=SimpleNamespace(close=lambda: None)), warnings)
    assert warnings[0].endswith("run weft up --restart")
