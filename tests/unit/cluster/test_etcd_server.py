"""What etcd is started with."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import etcd_server
from cluster.etcd_server import UNIT, EtcdServer
from cluster.local import FOLDER, Files, Local
from cni_plugin.cli import agents
from cni_plugin.cli.install import install
from cni_plugin.entry import units
from weft import systemd
from weft.errors import Conflict


class Systemctl:
    """A service manager that has loaded and enabled nothing."""

    def __init__(self, folder: Path) -> None:
        self.unit = folder / UNIT
        self.loaded = self.unit.read_text() if self.unit.exists() else ""
        self.enabled = False
        self.fails = ""
        self.calls: list[str] = []

    def __call__(self, *words: str) -> str:
        if words[0] == self.fails:
            raise KeyboardInterrupt  # as if killed here
        self.calls.append(words[0])
        if words[0] == "daemon-reload":
            self.loaded = self.unit.read_text()
        if words[0] == "enable":
            self.enabled = True
        if words[0] != "show":
            return ""
        stale = self.loaded != self.unit.read_text()
        return f"UnitFileState={'enabled' if self.enabled else 'disabled'}\nNeedDaemonReload={'yes' if stale else 'no'}"


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    made = Systemctl(tmp_path)
    monkeypatch.setattr(systemd, "UNITS", str(tmp_path))
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    monkeypatch.setattr(systemd, "control", made)
    monkeypatch.setattr(etcd_server, "binary", lambda: "/usr/bin/etcd")
    return made


def test_both_of_its_ports_require_certificates() -> None:
    local = Local("n1", "1f", "fd00::1", cluster="c1")
    own = Files("/etc/weft/etcd")
    found = json.loads(etcd_server.configuration(local, own, "n1=https://[fd00::1]:2380", new=True))
    for side, ca in (("client", "ca"), ("peer", "peer-ca")):
        tls = found[f"{side}-transport-security"]
        assert tls["client-cert-auth"] is True
        assert tls["trusted-ca-file"] == f"/etc/weft/etcd/{ca}.pem"
    assert found["listen-client-urls"] == "https://[fd00::1]:2379"
    assert found["listen-peer-urls"] == "https://[fd00::1]:2380"
    assert found["initial-cluster-state"] == "new"
    assert json.loads(etcd_server.configuration(local, own, "", new=False))["initial-cluster-state"] == "existing"


def test_the_unit_has_no_capability() -> None:
    lines = etcd_server.unit("/usr/bin/etcd", "/etc/weft/etcd").splitlines()
    assert "ExecStart=/usr/bin/etcd --config-file /etc/weft/etcd/etcd.conf" in lines
    assert {"CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077"} <= set(lines)


def test_a_host_boots_without_the_other_hosts() -> None:
    """etcd says that it is ready once a majority has heard of it, and multi-user.target wants the unit."""
    lines = etcd_server.unit("/usr/bin/etcd", FOLDER).splitlines()
    assert "Type=exec" in lines and not [one for one in lines if one.startswith("TimeoutStartSec")]


@pytest.mark.parametrize("step", ["show", "daemon-reload", "enable"])
def test_an_interrupted_installation_is_completed(systemctl: Systemctl, step: str) -> None:
    systemctl.fails = step
    with pytest.raises(KeyboardInterrupt):
        EtcdServer(Files(), "").install()
    systemctl.fails = ""
    EtcdServer(Files(), "").install()
    assert systemctl.enabled and systemctl.loaded == etcd_server.unit("/usr/bin/etcd", FOLDER)
    systemctl.calls.clear()
    EtcdServer(Files(), "").install()
    assert systemctl.calls == ["show"]


def read_only(path: Path, *_: object, **__: object) -> int:
    raise OSError(30, "Read-only file system", str(path))


def test_the_agent_leaves_an_earlier_release_s_unit(
    systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own unit lets it write few files; that etcd is started matters more than the text."""
    systemctl.unit.write_text("[Service]\n")
    systemctl.loaded = "[Service]\n"
    monkeypatch.setattr(Path, "write_text", read_only)
    EtcdServer(Files(), "").install()
    assert systemctl.enabled
    assert f"{systemctl.unit} stays as it is (Read-only file system): weft install --systemd" in caplog.text
    systemctl.unit.unlink()
    with pytest.raises(OSError, match="Read-only"):
        EtcdServer(Files(), "").install()


@pytest.mark.parametrize("there", [False, True])
def test_weft_install_replaces_the_unit_that_is_there(
    systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    for name, nothing in (("write", lambda command: []), ("start", lambda: "")):
        monkeypatch.setattr(units, name, nothing)
    monkeypatch.setattr(agents, "others", list)
    if there:
        systemctl.unit.write_text("[Service]\nType=notify\n")
    done = CliRunner().invoke(install, ["--systemd"])
    assert done.exit_code == 0 and (UNIT in done.output) is there, done.output
    assert systemctl.unit.exists() is there
    if there:
        assert systemctl.unit.read_text() == systemctl.loaded == etcd_server.unit("/usr/bin/etcd", FOLDER)


def test_an_upgrade_replaces_the_unit_that_is_there(systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package calls weft up --restart; etcd itself is not restarted."""
    monkeypatch.setattr(agents, "others", dict)
    assert agents._replace_others() == [] and not systemctl.unit.exists()
    systemctl.unit.write_text("[Service]\nType=notify\n")
    assert [one.partition(",")[0] for one in agents._replace_others()] == [UNIT]
    assert systemctl.unit.read_text() == systemctl.loaded == etcd_server.unit("/usr/bin/etcd", FOLDER)
    assert agents._replace_others() == []
    assert not {"start", "restart", "stop"} & {*systemctl.calls}


def test_a_port_of_another_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one of etcd itself, which the agent may have started meanwhile."""
    monkeypatch.setattr(systemd, "is_running", lambda: False)
    monkeypatch.setattr(etcd_server, "DATA", str(tmp_path / "data"))
    own = Files(str(tmp_path / "weft" / "etcd"))
    own.prepare()
    own.save(Local("n1", "1f", "127.0.0.1", cluster="c1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(etcd_server, "CLIENT_PORT", other.getsockname()[1])
        with pytest.raises(Conflict, match="is in use by another program"):
            EtcdServer(own, str(tmp_path)).ensure()
        found = iter((0, 7))
        monkeypatch.setattr(EtcdServer, "running", lambda self: next(found))
        assert EtcdServer(own, str(tmp_path)).ensure() is False
