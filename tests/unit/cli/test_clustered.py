"""What ``weft doctor`` and ``weft network rm`` learn from the agent about networks of the cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cni_plugin.cli import agents, clustered

NETWORKS = [
    {"Name": "blue", "Invalid": "vni is missing"},
    {"Name": "red", "Invalid": "", "Problem": "its subnet is in use", "LeftOut": {"h2": "its record mac is missing"}},
    {"Name": "green", "Invalid": "", "Problem": "", "LeftOut": {}},
]


@pytest.fixture(autouse=True)
def agent(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"networks": NETWORKS, "peers": []}
    get = lambda path: SimpleNamespace(json=answers[path.rpartition("/")[2]])  # noqa: E731
    connection = SimpleNamespace(get=get, close=lambda: None)
    monkeypatch.setattr(agents, "running", lambda: SimpleNamespace(client=connection))


def test_what_is_wrong_with_networks_of_the_cluster() -> None:
    invalid, problem, left_out = (f"{one.what}: {one.remedy}" for one in clustered.findings())
    assert "record of network blue is invalid, and changes nothing: vni is missing" in invalid
    assert "weft network rm blue" in invalid
    assert "does not take part in network red of the cluster: its subnet is in use" in problem
    assert "host h2 is left out of network red" in left_out


def test_networks_that_this_host_does_not_take_part_in_can_be_removed() -> None:
    assert clustered.has("blue") and not clustered.has("grey")
