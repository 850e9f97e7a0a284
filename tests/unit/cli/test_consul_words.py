"""What users of Consul type: keys, the agent, locks, watches and snapshots, with a real agent."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cni_plugin.agent import settings
from cni_plugin.cli import lock
from cni_plugin.cli.root import weft
from discovery.api.settings import HttpSettings
from discovery.structs import Node
from lab.agent import LabAgent, until
from weft.errors import ConfigProblem

DOCUMENTED = {
    "catalog datacenters": "",
    "catalog nodes": "detailed filter near node-meta service",
    "catalog services": "node node-meta tags",
    "event": "name node service tag",
    "info": "",
    "kv delete": "cas modify-index recurse",
    "kv export": "",
    "kv get": "base64 detailed keys recurse separator",
    "kv import": "prefix",
    "kv put": "acquire base64 cas flags modify-index release session",
    "leave": "",
    "lock": "child-exit-code monitor-retry n name pass-stdin shell timeout try verbose",
    "maint": "disable enable reason service",
    "members": "detailed filter segment status wan",
    "monitor": "log-json log-level",
    "reload": "",
    "services deregister": "id",
    "services register": "address id kind meta name port socket tag tagged-address",
    "snapshot inspect": "",
    "snapshot restore": "",
    "snapshot save": "",
    "validate": "config-format quiet",
    "watch": "filter key name passingonly prefix service shell state tag type",
}
"""The options of Consul's commands beside those of all of them, as the documentation of 1.22 lists them."""
EVERYWHERE = {"ca-file", "client-cert", "client-key", "http-addr", "token", "token-file", "datacenter", "stale"}
LEFT_OUT = {"ca-path", "tls-server-name", "namespace", "partition"}
"""Of all commands: TLS with a folder or another name, and what only Consul Enterprise has."""
OFFLINE = {"snapshot inspect", "validate"}


AGENT = (
    "advertise alt-domain bind bootstrap bootstrap-expect client config-dir config-file data-dir datacenter dev "
    "disable-host-node-id dns-port domain enable-local-script-checks enable-script-checks encrypt grpc-port http-port "
    "https-port join log-file log-json log-level node node-id node-meta pid-file protocol raft-protocol recursor "
    "rejoin retry-interval retry-join retry-max serf-lan-port serf-wan-port server server-port syslog ui"
)
"""Options of consul agent that people and their units use."""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabAgent]:
    folder = tmp_path_factory.mktemp("agent")
    node = Node("n1", "127.0.0.1", id="8f2d6c5e-0000-4000-8000-000000000001")
    found = LabAgent(folder, node, HttpSettings(listen=("127.0.0.1:0", str(folder / "api.sock"))))
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def environment(agent: LabAgent, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("CONSUL_", "WEFT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{agent.port}")
    yield
    assert call("kv", "delete", "-recurse", "")[0] == 0


def call(*arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    result = CliRunner().invoke(weft, list(arguments), input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def good(*arguments: str, given: bytes = b"") -> str:
    code, out, err = call(*arguments, given=given)
    assert (code, err) == (0, ""), (code, out, err)
    return out


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_option_is_there(name: str) -> None:
    first, *rest = name.split()
    command = weft.command_named(first)
    for word in rest:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    own = {option.lstrip("-") for one in command.params for option in one.opts}
    wanted = {*DOCUMENTED[name].split(), *(() if name in OFFLINE else EVERYWHERE)}
    assert wanted <= own and not LEFT_OUT & own


def test_the_agent_takes_the_options_of_consuls(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {option.lstrip("-") for one in weft.command_named("agent").params for option in one.opts}
    assert set(AGENT.split()) <= own
    asked: list[object] = []
    monkeypatch.setattr("cni_plugin.agent.main.serving", lambda path, given: asked.append((path, given)) or 0)
    code, _, err = call(
        "agent", "-server", "-bootstrap-expect=1", "-ui", "-dev", "-data-dir", "/d", "-config-dir=/c", "-node=n7",
        "-client=127.0.0.2", "-dns-port=-1", "-domain=shop", "-node-meta=a:b", "-log-level=debug", "-config=w.toml",
        "-enable-script-checks=false",
    )  # fmt: skip
    assert code == 0
    assert [line.split(":")[1] for line in err.splitlines()] == [
        " ignoring -bootstrap-expect", " ignoring -dev", " ignoring -log-level",
    ]  # fmt: skip
    listen = {"listen": ["127.0.0.2:8500"]}
    node = {"node": "n7", "data": "/d", "definitions": "/c", "meta": {"a": "b"}}
    assert asked == [
        ("w.toml", {"agent": node, "http": listen, "dns": {"listen": [], "domains": ["shop", "weft"]}}),
    ]
    assert call("agent") == (0, "", "") and asked[-1] == ("", {})
    assert call("agent", "-nonsense")[0] == call("agent", "-node-meta=x")[0] == 1


def test_options_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "weft.toml").write_text('[agent]\nnode = "n1"\ndatacenter = "dc2"\n')
    found = settings.read(str(tmp_path / "weft.toml"), {"agent": {"node": "n2"}, "http": {"listen": ["127.0.0.1:1"]}})
    assert (found.node, found.datacenter, found.http.listen) == ("n2", "dc2", ("127.0.0.1:1",))
    assert settings.read(str(tmp_path / "weft.toml")).definitions == "/etc/weft/services.d"
    with pytest.raises(ConfigProblem, match=r"agent\.node"):
        settings.read(str(tmp_path / "weft.toml"), {"agent": {"node": "a b"}})


def test_keys_are_set_read_and_deleted(tmp_path: Path) -> None:
    assert good("kv", "put", "app/limit", "100") == "Success! Data written to: app/limit\n"
    (tmp_path / "value").write_bytes(b"a\0b\xff")
    good("kv", "put", "-flags=7", "/app/deep/bin", f"@{tmp_path / 'value'}")
    good("kv", "put", "app/empty")
    good("kv", "put", "-base64", "in", "-", given=b"aGVsbG8=")
    assert (good("kv", "get", "app/limit"), good("kv", "get", "in")) == ("100\n", "hello\n")
    assert good("kv", "get", "-base64", "app/deep/bin") == "YQBi/w==\n"
    assert good("kv", "get", "-keys", "app/") == "app/deep/\napp/empty\napp/limit\n"
    assert good("kv", "get", "-keys", "-separator=", "app/").splitlines()[0] == "app/deep/bin"
    assert good("kv", "get", "-recurse", "app/l") == "app/limit:100\n"
    details = dict(line.split(maxsplit=1) for line in good("kv", "get", "-detailed", "app/limit").splitlines())
    assert (details["Key"], details["Value"], details["Session"], details["Flags"]) == ("app/limit", "100", "-", "0")
    assert call("kv", "get", "none") == (1, "", "Error! No key exists at: none\n")
    assert good("kv", "get", "-recurse", "none") == ""
    index = details["ModifyIndex"]
    refused = call("kv", "put", "-cas", "-modify-index=1", "app/limit", "5")
    assert refused == (1, "", "Error! Did not write to app/limit: CAS failed\n")
    good("kv", "put", "-cas", f"-modify-index={index}", "app/limit", "5")
    refused = call("kv", "delete", "-cas", f"-modify-index={index}", "app/limit")
    assert refused == (1, "", "Error! Did not delete key app/limit: CAS failed\n")
    assert good("kv", "delete", "app/limit") == "Success! Deleted key: app/limit\n"
    assert good("kv", "delete", "-recurse", "app/") == "Success! Deleted keys with prefix: app/\n"
    assert good("kv", "get", "-keys", "app/") == ""


def test_a_value_that_is_too_large_is_called_that(agent: LabAgent) -> None:
    """The agent answers before it has read it, and closes the connection while it is sent."""
    for address in (f"127.0.0.1:{agent.port}", f"unix://{agent.folder}/api.sock"):
        code, _, said = call("kv", "put", f"-http-addr={address}", "big", "-", given=bytes(2 << 20))
        assert code == 1 and "too large, max size: 524288 bytes" in said


def test_options_after_arguments_are_pointed_out() -> None:
    """As in Go they are arguments there."""
    assert call("kv", "get", "a", "-detailed")[2].endswith("hint: options go before arguments: -detailed\n")
    assert call("services", "watch", "web", "b", "--json")[2].endswith("arguments: --json\n")
    assert call("kv", "get", "a", "b")[2].endswith("hint: see weft kv get -help\n")


def test_keys_are_exported_and_imported() -> None:
    good("kv", "put", "-flags=3", "a/b", "1")
    exported = good("kv", "export", "a/")
    assert json.loads(exported) == [{"key": "a/b", "flags": 3, "value": "MQ=="}]
    assert good("kv", "import", "-prefix=z/", "-", given=exported.encode()) == "Imported: z/a/b\n"
    assert good("kv", "get", "z/a/b") == "1\n"
    for given in (b"{}", b"no", b'[{"key": "ok", "value": "MQ=="}, {"key": "x", "value": "*"}]', b"[1]"):
        assert call("kv", "import", "-", given=given)[0] == 1
    assert good("kv", "get", "-keys", "ok") == ""  # nothing is set before all has been read


def test_maintenance_is_shown_and_ended() -> None:
    good("services", "register", "web", "10.0.0.5:80")
    assert good("maint") == ""
    assert good("maint", "-enable", "-reason=disk") == "Node maintenance is now enabled\n"
    assert good("maint", "-enable", "-service=web") == 'Service maintenance is now enabled for "web"\n'
    shown = good("maint")
    assert "Name:   n1\n  Reason: disk" in shown and "ID:     web" in shown
    assert good("maint", "-disable") == "Node maintenance is now disabled\n"
    assert good("maint", "-disable", "-service=web") == 'Service maintenance is now disabled for "web"\n'
    assert good("maint") == ""
    assert call("maint", "-enable", "-disable")[0] == call("maint", "-reason=x")[0] == 1
    assert call("maint", "-enable", "-service=none")[0] == 1
    good("services", "deregister", "-id=web")


def test_a_service_is_registered_by_its_name_unless_there_is_such_a_file(agent: LabAgent, tmp_path: Path) -> None:
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        good("services", "register", "web", "[fd00::5]:80")
        found = agent.get("/v1/agent/service/web").json
        assert (found["Address"], found["Port"]) == ("fd00::5", 80)
        Path("web").write_text('service { name = "of-a-file" port = 1 }')
        assert good("services", "register", "web") == "Registered service: of-a-file\n"
    finally:
        os.chdir(before)
    assert "cannot be read" in call("services", "register", "none.hcl")[2]
    assert "Invalid Tagged Address" in call("services", "register", "db", "10.0.0.5:")[2]
    assert call("services", "register", "a", "b", "c")[0] == 1
    for name in ("web", "of-a-file"):
        good("services", "deregister", f"-id={name}")


def test_events_are_fired_and_watched(tmp_path: Path) -> None:
    assert good("event", "-name=deploy", "v2").startswith("Event ID: ")
    [seen] = json.loads(good("watch", "-type=event", "-name=deploy"))
    assert (seen["Name"], seen["Payload"]) == ("deploy", "djI=")
    assert call("event", "v2")[0] == 1


def test_watch_prints_once_or_runs_a_program(tmp_path: Path) -> None:
    good("kv", "put", "app/a", "1")
    assert json.loads(good("watch", "-type=key", "-key=app/a"))["Value"] == "MQ=="
    assert [one["Key"] for one in json.loads(good("watch", "-type=keyprefix", "-prefix=app/"))] == ["app/a"]
    assert "consul" in json.loads(good("watch", "-type=services"))
    assert json.loads(good("watch", "-type=nodes"))[0]["Node"] == "n1"
    assert json.loads(good("watch", "-type=service", "-service=none")) == []
    assert json.loads(good("watch", "-type=checks", "-state=critical")) == []
    assert json.loads(good("watch", "-type=key", "-key=none")) is None
    file = tmp_path / "seen"
    # The program fails at the second value, and with it the command.
    script = f'cat >>{file}; echo "index $CONSUL_INDEX" >>{file}; [ "$(grep -c index {file})" -lt 2 ]'
    threading.Timer(1.0, lambda: until(lambda: file.exists() and not good("kv", "put", "app/a", "2").isspace())).start()
    code, _, err = call("watch", "-type=key", "-key=app/a", script)
    assert code == 1 and "Error executing handler: exit status 1" in err
    found = file.read_text()
    assert '"MQ=="' in found and '"Mg=="' in found and "index 0" not in found
    assert call("watch")[0] == call("watch", "-type=key")[0] == 1
    assert call("watch", "-type=key", "-key=a", "-shell=false", "/nothing")[0] == 1


def test_a_program_runs_under_a_lock(agent: LabAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, key = tmp_path / "held", "/v1/kv/job/.lock"
    code, _, err = call("lock", "-verbose", "job", f"echo $CONSUL_LOCK_HELD >{held}; exit 3")
    assert (code, held.read_text()) == (1, "true\n") and "ended with 3" in err
    assert call("lock", "-child-exit-code", "job", "false")[0] == 2
    assert good("lock", "-shell=false", "job", "true") == ""
    assert agent.get(key).status == 404  # the key and the session are gone
    assert agent.get("/v1/session/list").json == []

    session = agent.put("/v1/session/create", b'{"LockDelay": "0s"}').json["ID"]
    assert agent.put(f"{key}?acquire={session}", b"").json is True
    code, _, err = call("lock", "-timeout=500ms", "job", f"rm {held}")
    assert code == 1 and "Lock acquisition failed: timeout" in err and held.exists()
    agent.put(f"/v1/session/destroy/{session}")

    # Who loses the lock is ended.
    monkeypatch.setattr(lock, "_RENEWAL", 0.2)

    def take_away() -> None:
        until(lambda: agent.get("/v1/session/list").json)
        until(lambda: agent.get(key).status == 200 and agent.get(key).json[0].get("Session"))
        agent.put(f"/v1/session/destroy/{agent.get('/v1/session/list').json[0]['ID']}")

    thread = threading.Thread(target=take_away)
    thread.start()
    code, _, err = call("lock", "job", "exec sleep 600")
    thread.join()
    assert code == 1 and "Lock lost" in err
    assert call("lock", "job")[0] == call("lock", "-n=2", "job", "true")[0] == 1


def test_a_snapshot_is_saved_inspected_and_restored(tmp_path: Path) -> None:
    file = tmp_path / "backup.snap"
    good("kv", "put", "a", "1")
    assert good("snapshot", "save", str(file)).startswith("Saved and verified snapshot to index ")
    assert file.stat().st_mode & 0o77 == 0  # tokens are in it
    good("kv", "put", "a", "2")
    assert "kv " in good("snapshot", "inspect", str(file))
    assert good("snapshot", "restore", str(file)) == "Restored snapshot\n"
    assert good("kv", "get", "a") == "1\n"
    file.write_bytes(file.read_bytes()[:-20])
    for verb in ("inspect", "restore"):
        assert call("snapshot", verb, str(file))[0] == 1
    assert call("snapshot", "inspect", str(tmp_path / "none"))[0] == 1


def test_files_are_validated(tmp_path: Path) -> None:
    configured, services = tmp_path / "weft.toml", tmp_path / "web.hcl"
    configured.write_text('[agent]\ndatacenter = "dc2"\n')
    services.write_text('service { name = "web" port = 80 }')
    assert good("validate", str(tmp_path)) == "Configuration is valid!\n"
    assert good("validate", "-quiet", str(configured), str(services)) == ""
    configured.write_text("[agnet]\n")
    code, _, err = call("validate", str(tmp_path))
    assert code == 1 and "unknown section [agnet]" in err
    assert call("validate")[0] == 1
    services.write_text('service { nmae = "web" }')
    assert "unknown key nmae" in call("validate", str(services))[2]


def test_the_agent_tells_about_itself_and_reloads(agent: LabAgent) -> None:
    assert good("info").startswith("agent:\n\tversion = ")
    assert good("reload") == "Configuration reload triggered\n"
    for command in ("info", "reload", "leave", "monitor", "maint"):
        code, out, err = call(command, "-http-addr=127.0.0.1:1")
        assert (code, out) == (1, "") and "cannot connect to the agent" in err, command
