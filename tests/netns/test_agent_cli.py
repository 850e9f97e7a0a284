"""``weft up``, ``down``, ``status``, ``dns-lookup``: real processes, no service manager."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugin.agent import report
from lab.commands import Outcome, run
from lab.host import Host
from lab.plugins import ROOT
from lab.waiting import until

Weft = Callable[..., Outcome]
CONFIG = Path("/run/cni-config")
EXPECTED = 60.0
"""Seconds for a process to start or to end on a loaded machine."""


@pytest.fixture
def weft(host: Host) -> Iterator[Weft]:
    """Runs bin/weft on the test's host; afterwards no process is left."""
    environment = {"PATH": os.environ["PATH"], "WEFT_CNI_CONFIG": str(CONFIG), "LC_ALL": "C.UTF-8"}

    def call(*arguments: str, check: bool = True) -> Outcome:
        return run(str(ROOT / "bin/weft"), *arguments, environment=environment, check=check, timeout=EXPECTED * 2)

    yield call
    call("down", check=False)


def folder() -> Path:
    return Path(f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}")


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_up_status_down(host: Host, weft: Weft) -> None:
    before = host.snapshot()
    down = weft("status", check=False)
    # Nothing needs an agent yet.
    assert (down.code, down.stdout.splitlines()[0].split()) == (0, ["Agent:", "not", "running"])
    assert "No warnings." in down.stdout
    up = json.loads(weft("up", "--json").stdout)
    processes = [up["agent"]["pid"], up["engine"]["pid"]]
    assert up["agent"]["started"] and up["engine"]["started"] and all(map(alive, processes))
    assert "127.0.0.1:8500" in up["agent"]["http"] and "127.0.0.1:8600" in up["agent"]["dns"]
    again = weft("up").stdout
    assert f"agent already running, process {processes[0]}" in again
    assert f"engine already running, process {processes[1]}" in again
    assert weft("up", "--restart").stdout == "nothing to replace: no daemon is of another installation or release\n"

    weft("services", "register", "-name=web", "-address=10.9.0.5", "-port=80")
    weft("network", "create", "blue", "--subnet", "10.7.0.0/24")
    good = json.loads(weft("status", "--json").stdout)
    assert (good["services"], good["instances"], good["networks"]) == (1, {"passing": 1}, 1)
    assert good["unchecked"] == 1 and "1 (1 no check)" in weft("status").stdout
    assert (good["agent"]["pid"], good["engine"]["pid"], good["warnings"]) == (*processes, [])
    assert "No warnings." in weft("status").stdout
    (CONFIG / "db.hcl").write_text(
        'service {\n name = "db"\n check {\n ttl = "1h"\n status = "critical"\n notes = "full"\n }\n}'
    )
    weft("services", "register", str(CONFIG / "db.hcl"))
    bad = weft("status", check=False)
    assert bad.code == 1
    assert "  - db is critical, db on " in bad.stdout

    os.kill(processes[0], signal.SIGKILL)
    until(lambda: not alive(processes[0]))
    dead = weft("status", check=False)
    assert dead.code == 1 and "  - agent not running, weft up has started one: " in dead.stdout
    processes[0] = json.loads(weft("up", "--json").stdout)["agent"]["pid"]

    first, second = weft("down").stdout.splitlines()
    assert first == f"agent stopped, process {processes[0]}"
    assert second == f"engine stopped, process {processes[1]}"
    assert not any(map(alive, processes))
    last = weft("down", "--services").stdout.splitlines()
    assert last == ["agent not running", "engine not running", "virtual addresses removed"]
    assert host.changes(before) == []


def test_dns_lookup(weft: Weft) -> None:
    weft("up")
    weft("services", "register", "-name=web", "-address=10.9.0.5", "-port=80", "-tagged-address=lan_ipv6=fd00::5")
    lines = [line.split() for line in weft("dns-lookup", "web.service.consul").stdout.splitlines()]
    assert ["web.service.consul.", "0s", "A", "10.9.0.5"] in lines
    found = json.loads(weft("dns-lookup", "--json", "web.service.consul", "srv", "-server", "[::1]:8600").stdout)
    assert found["server"] == "::1 port 8600"
    values = {(one["section"], one["type"]): one["value"] for one in found["records"]}
    assert values["answer", "SRV"].startswith("1 1 80 ") and values["additional", "A"] == "10.9.0.5"
    assert "web.service" in weft("dns-lookup", "10.9.0.5").stdout
    unknown = weft("dns-lookup", "none.service.consul", check=False)
    missing = "weft: none.service.consul not found by 127.0.0.1 port 8600 (NXDOMAIN)\n"
    assert (unknown.code, unknown.stderr) == (3, missing)
    nothing = weft("dns-lookup", "web.service.consul", "TXT", check=False)
    assert (nothing.code, nothing.stderr) == (3, "weft: web.service.consul has no TXT record on 127.0.0.1 port 8600\n")


def test_dns_lookup_of_many_instances_uses_tcp(weft: Weft) -> None:
    weft("up")
    text = "".join(f'service {{ name = "many" id = "m{i}" address = "10.9.1.{i}" }}\n' for i in range(1, 200))
    (folder() / "many.hcl").write_text(text)
    assert weft("services", "register", str(folder() / "many.hcl")).stdout.count("Registered service: many") == 199
    assert len(weft("dns-lookup", "many.service.consul", "A").stdout.splitlines()) == 199


def test_a_port_in_use_is_reported_and_the_unix_socket_is_served(weft: Weft) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 8500))
        other.listen()
        up = weft("up", check=False)
        assert up.code == 1
        assert "weft: http: the HTTP API cannot listen on 127.0.0.1:8500: Address already in use; " in up.stderr
        assert "listen in [http] of weft.toml" in up.stderr
        assert f"HTTP on {folder()}/api.sock\n" in up.stdout
        # Commands ask the agent by its socket, never the server that has the port.
        weft("services", "register", "-name=web", "-address=10.9.0.5", "-port=80")
        assert "web" in weft("services", "list").stdout.split()
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()
        status = weft("status", check=False)
        assert (status.code, "http: the HTTP API cannot listen on 127.0.0.1:8500" in status.stdout) == (1, True)
    until(lambda: weft("status", check=False).code == 0, EXPECTED, "the HTTP API to listen once its port is free")
    weft("down")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 8500))
        other.listen()
        nobody = weft("services", "list", check=False)
        assert nobody.code == 1 and f"cannot connect to the agent at unix://{folder()}/api.sock" in nobody.stderr


def test_invalid_configuration_starts_no_process(weft: Weft, tmp_path: Path) -> None:
    (tmp_path / "weft.toml").write_text('[agent]\nnode = "a b"\n[dsn]\n')
    up = weft("up", "--config", str(tmp_path / "weft.toml"), check=False)
    assert up.code == 1
    assert "unknown section [dsn]" in up.stderr and "agent.node" in up.stderr
    assert weft("down").stdout == "agent not running\nengine not running\n"


def test_a_changed_configuration_is_not_used_silently(weft: Weft, tmp_path: Path) -> None:
    config = tmp_path / "weft.toml"
    config.write_text('[agent]\nnode = "n1"\n[uplink]\nup = "1gbit"\n')
    up = ("up", "--config", str(config))
    weft(*up)
    config.write_text('# a comment\n[agent]\nnode = "n1"\n[uplink]\nup = "2gbit"\n')
    same = weft(*up)  # [uplink] is read by each ADD
    assert "agent already running" in same.stdout and same.stderr == ""
    config.write_text('[agent]\nnode = "n2"\n[dns]\nnode_ttl = "1s"\n')
    changed = weft(*up, check=False)
    assert changed.code == 1
    assert f"another configuration: [agent], [dns] of {config} changed since it was started" in changed.stderr
    assert f"To use it: weft down && weft up --config {config};" in changed.stdout
    assert json.loads(weft(*up, "--json", check=False).stdout)["agent"]["changed"] == ["agent", "dns"]
    config.write_text("[agnt]\n")
    assert "unknown section [agnt]" in weft(*up, check=False).stderr
    config.write_text('[agent]\nnode = "n2"\n')
    weft("down")
    weft(*up)
    assert weft(*up).code == 0


def test_commands_use_the_agents_configuration(weft: Weft, tmp_path: Path) -> None:
    (tmp_path / "weft.toml").write_text('[agent]\nnode = "other"\n[http]\nlisten = ["127.0.0.1:18500"]\n')
    found = weft("up", "--config", str(tmp_path / "weft.toml"))
    assert "HTTP on 127.0.0.1:18500, " in found.stdout
    assert weft("members").stdout.splitlines()[1].split()[0] == "other"  # over the control socket, not over HTTP


def test_idle_agent_keeps_running_while_the_stay_file_exists(host: Host) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop()); from cni_plugin.agent import main as its; "
    code += "its.IDLE = 0.5; its.main([])"
    folder().mkdir(parents=True, exist_ok=True)
    stay = folder() / report.STAY
    stay.touch()
    process = host.start(sys.executable, "-Ic", code, str(ROOT))
    until(lambda: report.read(str(folder())) is not None, EXPECTED, "the agent's report")
    time.sleep(5)  # two rounds of the idle timer
    assert process.poll() is None
    stay.unlink()
    until(lambda: process.poll() is not None, EXPECTED, "the agent's end")


def test_ttls_go_on_while_the_agent_is_dead(host: Host, weft: Weft) -> None:
    """SIGKILL, and a start after one TTL has passed: that check is critical in the first answer."""

    def asked(method: str, path: str, body: object = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", 8500, timeout=EXPECTED)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            return connection.getresponse().read()

    def statuses() -> dict[str, str]:
        return {one["Name"]: one["Status"] for one in json.loads(asked("GET", "/v1/agent/checks")).values()}

    def stored() -> set[str]:
        found = sqlite3.connect(f"file:{folder()}/agent/catalog.db?mode=ro", uri=True)
        with contextlib.closing(found):
            rows = found.execute(
                'SELECT CAST(key AS TEXT) FROM entries WHERE CAST(value AS TEXT) LIKE \'%"passing","expires"%\''
            )
            return {key.rpartition("/")[2] for (key,) in rows}

    agent = json.loads(weft("up", "--json").stdout)["agent"]["pid"]
    for name, ttl in (("short", "6s"), ("long", "1h")):
        check = {"Name": name, "CheckID": name, "TTL": ttl}
        asked("PUT", "/v1/agent/service/register", {"Name": name, "Port": 1, "Check": check})
        asked("PUT", f"/v1/agent/check/pass/{name}")
    reported = time.monotonic()
    until(lambda: stored() == {"short", "long"})
    os.kill(agent, signal.SIGKILL)
    until(lambda: not alive(agent))
    time.sleep(max(reported + 6 - time.monotonic(), 0))
    weft("up")
    assert statuses() == {"short": "critical", "long": "passing"}
    assert b"TTL expired" in asked("GET", "/v1/agent/checks")


def test_a_damaged_catalog_is_restored_and_reported(host: Host, weft: Weft) -> None:
    """Emptied while no agent runs, then deleted while one runs: nothing is lost, and both are reported
    until the stated command.
    """
    catalog = folder() / "agent/catalog.db"

    def services() -> bool:
        return "web" in weft("services", "list", check=False).stdout.split()

    def reported() -> list[str]:
        found = json.loads(weft("doctor", "--json", check=False).stdout)["findings"]
        found = [one for one in found if str(catalog) in one["what"]]
        return [one["remedy"].partition("then remove the report: ")[2] for one in found]

    weft("up")
    weft("services", "register", "-name=web", "-address=10.9.0.5", "-port=80")
    weft("down")
    os.truncate(catalog, 0)
    agent = json.loads(weft("up", "--json").stdout)["agent"]["pid"]
    assert services()
    (command,) = reported()
    assert command in weft("status", check=False).stdout
    run("sh", "-c", command)
    assert weft("status").code == 0

    catalog.unlink()
    until(lambda: catalog.exists() and services(), EXPECTED, "the agent to restore its catalog")
    assert alive(agent)
    run("sh", "-c", reported()[0])
    assert reported() == []


def test_definitions_are_read_at_the_start_and_on_sighup(host: Host, weft: Weft, tmp_path: Path) -> None:
    """Files win over what is registered; one that cannot be read changes nothing, and what files lose is
    deregistered, also while no agent runs.
    """
    folder = tmp_path / "services.d"
    folder.mkdir()
    (tmp_path / "weft.toml").write_text(f'[agent]\ndata = "{tmp_path}/data"\ndefinitions = "{folder}"\n')
    (folder / "web.hcl").write_text('service {\n name = "web"\n port = 80\n}\n')
    (folder / "disk.json").write_text('{"check": {"name": "disk", "ttl": "1h"}}')

    def up() -> int:
        return int(json.loads(weft("up", "--config", str(tmp_path / "weft.toml"), "--json").stdout)["agent"]["pid"])

    def services() -> set[str]:
        return set(weft("services", "list").stdout.split()) - {"consul"}

    agent = up()
    until(lambda: services() == {"web"}, EXPECTED, "the services of the folder")
    weft("services", "register", "by-hand")
    (folder / "web.hcl").rename(folder / "web.off")
    (folder / "db.hcl").write_text('service { name = "db" }')
    os.kill(agent, signal.SIGHUP)
    until(lambda: services() == {"db", "by-hand"}, EXPECTED, "the services after SIGHUP")
    (folder / "new.hcl").write_text('service { name = "new" }')
    (folder / "db.hcl").write_text('service { nmae = "db" }')
    refused = weft("reload", check=False)
    assert refused.code == 1 and "unknown key nmae; did you mean name?" in refused.stderr
    assert services() == {"db", "by-hand"}
    weft("down")
    for file in folder.iterdir():
        file.unlink()
    up()
    until(lambda: services() == {"by-hand"}, EXPECTED, "what the files have lost to be deregistered")
    checks = weft("watch", "-type=checks").stdout
    assert '"disk"' not in checks
