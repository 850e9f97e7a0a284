"""Network configuration lists: read in libcni's order, written atomically."""

from __future__ import annotations

import json
import os
import threading
from ipaddress import ip_network
from pathlib import Path

import pytest

from cni_plugin.networks import conflists
from weft.errors import ConfigProblem, Conflict, StateDamaged

LIST = {
    "cniVersion": "1.0.0",
    "name": "blue",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "capabilities": {"ips": True, "mac": False},
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"}]]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def put(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_files_are_chosen_by_extension_and_sorted_by_name(tmp_path: Path) -> None:
    put(tmp_path, "20-b.conflist", LIST)
    put(tmp_path, "10-a.conf", {"name": "single", "type": "macvlan", "cniVersion": "0.3.1"})
    put(tmp_path, "30-c.json", {"name": "third", "type": "ptp"})
    put(tmp_path, "40-d.txt", LIST)
    put(tmp_path, ".50-e.conflist", LIST)
    put(tmp_path, "60-f.conflist", "{")
    found, problems = conflists.listed(str(tmp_path))
    assert [(one.name, one.driver, one.version) for one in found] == [
        ("single", "macvlan", "0.3.1"),
        ("blue", "bridge", "1.0.0"),
        ("third", "ptp", "0.1.0"),
    ]
    assert [problem.message.split(":")[0] for problem in problems] == [str(tmp_path / "60-f.conflist")]
    assert conflists.listed(str(tmp_path / "nowhere")) == ([], [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "must be a JSON object"),
        ({"plugins": []}, "name"),
        ({"name": "a", "plugins": []}, "plugins"),
        ({"name": "a", "plugins": [1]}, "plugins"),
        ({"name": "a", "plugins": [{}]}, "has no type"),
        ({"name": "a/b", "plugins": [{"type": "x"}]}, "name"),
        ({"name": "a"}, "has no type"),
        ("\ufeff{}", "byte order mark"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, content: object, said: str) -> None:
    put(tmp_path, "x.conflist", content)
    with pytest.raises(ConfigProblem) as caught:
        conflists.load(str(tmp_path / "x.conflist"))
    assert caught.value.message.startswith(f"{tmp_path}/x.conflist: ")
    assert said in caught.value.message


def test_a_plugin_gets_the_runtime_config_of_its_declared_capabilities(tmp_path: Path) -> None:
    put(tmp_path, "x.conflist", LIST)
    found = conflists.find(str(tmp_path), "blue")
    assert found.capabilities() == {"ips", "portMappings"}
    runtime = {"ips": ["10.1.0.9"], "portMappings": [1], "mac": "x"}
    first, second = (found.plugin_config(place, runtime, {"ips": []} if place else None) for place in (0, 1))
    assert first["runtimeConfig"] == {"ips": ["10.1.0.9"]}
    assert second["runtimeConfig"] == {"portMappings": [1]}
    assert ("prevResult" in first, second["prevResult"]) == (False, {"ips": []})
    assert (second["name"], second["cniVersion"]) == ("blue", "1.0.0")
    assert "runtimeConfig" not in found.plugin_config(0, {}, None)


def test_subnets_of_any_ipam_plugin() -> None:
    content = {
        "name": "a",
        "plugins": [
            {"type": "x", "ipam": {"type": "other", "subnet": "10.5.0.0/16", "ranges": "nonsense"}},
            {"type": "y", "ipam": {"addresses": [{"address": "10.6.0.7/24"}, {"address": 5}]}},
        ],
    }
    found = conflists.subnets(conflists.parse("x", content))
    assert found == (ip_network("10.5.0.0/16"), ip_network("10.6.0.0/24"))


def test_the_newest_known_version_of_cni_versions_is_used() -> None:
    def version(**keys: object) -> str:
        return conflists.parse("x", {"name": "a", "plugins": [{"type": "x"}], **keys}).version

    assert version(cniVersion="0.4.0", cniVersions=["0.4.0", "1.1.0", "9.9.9"]) == "1.1.0"
    assert version() == "0.1.0"


def test_of_two_files_with_one_network_name_the_first_wins(tmp_path: Path) -> None:
    put(tmp_path, "b.conflist", LIST)
    put(tmp_path, "a.conflist", LIST)
    assert conflists.find(str(tmp_path), "blue").path.endswith("/a.conflist")
    with pytest.raises(conflists.UnknownNetwork) as caught:
        conflists.find(str(tmp_path), "red")
    assert "blue" in caught.value.hint


def test_write_never_replaces_a_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = conflists.write(str(tmp_path), "blue", dict(LIST))
    assert json.loads(Path(path).read_text()) == LIST
    assert os.stat(path).st_mode & 0o777 == 0o644 & ~_umask()
    with pytest.raises(Conflict):
        conflists.write(str(tmp_path), "blue", {"name": "other"})
    assert json.loads(Path(path).read_text()) == LIST
    assert os.listdir(tmp_path) == ["blue.conflist"]
    with pytest.raises(StateDamaged):
        conflists.write(str(tmp_path / "nowhere"), "blue", dict(LIST))
    conflists.remove(conflists.load(path))
    assert os.listdir(tmp_path) == []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_writers_of_a_directory_exclude_each_other(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def other() -> None:
        inside.wait()
        with conflists.locked(str(tmp_path / "net.d")):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with conflists.locked(str(tmp_path / "net.d")):
        inside.set()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
