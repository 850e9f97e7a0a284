"""Commands services, catalog and members with a real agent: output and exit statuses as in Consul."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest
from click.testing import CliRunner

from cni_plugin.cli.root import weft
from discovery import layout
from discovery.api.settings import HttpSettings
from discovery.consul import client
from discovery.structs import Node, VirtualAddress
from lab.agent import LabAgent, until

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = 30.0
"""Timeout of expected lines, seconds."""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabAgent]:
    node = Node("n1", "127.0.0.1", id="8f2d6c5e-0000-4000-8000-000000000001", meta={"rack": "a"})
    folder = tmp_path_factory.mktemp("agent")
    found = LabAgent(folder, node, HttpSettings(listen=("127.0.0.1:0", str(folder / "api.sock"))))
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def environment(agent: LabAgent, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("CONSUL_", "WEFT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{agent.port}")
    yield
    for name in agent.get("/v1/agent/services").json:
        if name != "consul":
            assert agent.put(f"/v1/agent/service/deregister/{name}").status == 200


def call(*arguments: str, given: str = "") -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    result = CliRunner().invoke(weft, list(arguments), input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def good(*arguments: str, given: str = "") -> str:
    """Standard output of a command that must succeed without a message on stderr."""
    code, out, err = call(*arguments, given=given)
    assert (code, err) == (0, ""), (code, out, err)
    return out


def test_register_with_options(agent: LabAgent) -> None:
    out = good(
        *("services", "register", "-name=web", "-id", "web-1", "--address=10.0.0.5", "-port", "80", "-tag=v1"),
        *("-tag", "v2", "-meta=a=b=c", "-tagged-address=lan=[fd00::1]:81", "-tagged-address", "wan=192.0.2.1"),
    )
    assert out == "Registered service: web\n"
    found = agent.get("/v1/agent/service/web-1").json
    assert (found["Service"], found["Address"], found["Port"]) == ("web", "10.0.0.5", 80)
    assert (found["Tags"], found["Meta"]) == (["v1", "v2"], {"a": "b=c"})
    assert found["TaggedAddresses"] == {
        "lan": {"Address": "fd00::1", "Port": 81},
        "wan": {"Address": "192.0.2.1", "Port": 0},
    }
    assert call("services", "deregister", "web-1")[2].endswith("\nhint: weft services deregister -id=web-1\n")
    assert good("services", "deregister", "-id=web-1") == "Deregistered service: web-1\n"
    assert agent.get("/v1/agent/service/web-1").status == 404


def test_register_with_files(agent: LabAgent, tmp_path: Path) -> None:
    web, others = tmp_path / "web.hcl", tmp_path / "others.json"
    web.write_text('service {\n name = "web"\n port = 80\n tags = ["file"]\n check { id = "up" ttl = "1h" }\n}\n')
    others.write_text('{"services": [{"name": "db", "id": "db-1"}], "check": {"name": "disk", "ttl": "1h"}}')
    given = 'service { name = "in" port = 1 }'
    out = good("services", "register", "-port=99", "-tag=flag", "-meta=k=v", str(web), str(others), "-", given=given)
    assert out.splitlines() == [
        "Registered service: web",
        "Registered service: db",
        "Registered service: in",
        "Registered check: disk",
    ]
    found = agent.get("/v1/agent/services").json
    assert (found["web"]["Port"], found["web"]["Tags"], found["web"]["Meta"]) == (80, ["file", "flag"], {"k": "v"})
    assert (found["db-1"]["Port"], found["db-1"]["Tags"]) == (99, ["flag"])
    assert {"up", "disk"} <= agent.get("/v1/agent/checks").json.keys()
    out = good("services", "deregister", str(web), str(others))
    assert out.splitlines() == ["Deregistered service: web", "Deregistered service: db-1", "Deregistered check: disk"]
    assert not {"up", "disk"} & agent.get("/v1/agent/checks").json.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("register",), "Service registration requires at least one argument or flags."),
        (("register", "-name=web", "web.hcl"), "Service registration requires arguments or -id, not both."),
        (("register", "none.hcl"), "Error: none.hcl cannot be read: No such file or directory"),
        (("register", "-name=web", "-meta=x"), 'Missing "=" value in argument: x'),
        (("register", "-name=web", "-tagged-address=lan=x:y"), "Invalid Tagged Address: 'x:y' is not ADDRESS"),
        (("register", "-name=web", "-port=x"), "Invalid value for '-port': 'x' is not a valid integer"),
        (("register", "-name=web", "-address=0.0.0.0"), 'Error registering service "web": Invalid service address'),
        (("register", "-bogus"), "flag provided but not defined: -bogus"),
        (("register", "-name"), "flag needs an argument: -name"),
        (("register", "---name"), "bad flag syntax: ---name"),
        (("list", "-stale=x"), 'invalid boolean value "x" for -stale: parse error'),
        (("list", "x"), "Got unexpected extra argument (x)"),
        (("list", "-format=xml"), "Invalid value for '-format': 'xml' is not one of 'pretty', 'json'"),
        (("deregister",), "Service deregistration requires at least one argument or -id."),
        (("deregister", "-id=a", "b"), "Service deregistration requires arguments or -id, not both."),
        (("deregister", "-id=none"), 'Error deregistering service "none": Unknown service ID "none".'),
        (("list", "-http-addr=ftp://x"), "Error connecting to Consul agent: 'ftp://x' is not a valid agent address"),
        (("list", "-token-file=none"), "Error loading token file: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage_errors_exit_with_1_and_change_nothing(agent: LabAgent, arguments: tuple[str, ...], said: str) -> None:
    before = agent.get("/v1/agent/services").body
    code, out, err = call("services", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(said), err
    assert "Traceback" not in err
    assert agent.get("/v1/agent/services").body == before


def test_options_after_a_file_get_a_hint() -> None:
    _, _, err = call("services", "register", "-", "-name=web", given='service { name = "web" }')
    assert err.splitlines() == [
        "Error: -name=web cannot be read: No such file or directory",
        "hint: options go before files: -name=web",
    ]


def test_ignored_keys_of_a_file_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.hcl").write_text('datacenter = "dc1"\nservice { name = "web" }')
    code, out, err = call("services", "register", str(tmp_path / "a.hcl"))
    assert (code, out) == (0, "Registered service: web\n")
    assert "a.hcl: datacenter: not a definition of a service or check" in err


def test_catalog_services(agent: LabAgent) -> None:
    good("services", "register", "-name=web", "-id=web-1", "-address=10.0.0.5", "-port=80", "-tag=v2", "-tag=v1")
    good("services", "register", "-name=a-much-longer-name")
    for command in (("catalog", "services"), ("services", "list")):
        assert good(*command) == "a-much-longer-name\nconsul\nweb\n"
        assert good(*command, "-tags").splitlines()[2] == "web                     v1,v2"
        assert json.loads(good(*command, "--json")) == {"a-much-longer-name": [], "consul": [], "web": ["v1", "v2"]}
        assert "web" in good(*command, "-node=n1").splitlines()
        assert "web" in good(*command, "-node-meta", "rack=a").splitlines()
        code, out, err = call(*command, "-node=none")
        assert (code, out) == (0, "")
        assert err == "No services match the given query - try expanding your search.\n"
    assert json.loads(good("services", "list", "-format=json")).keys() >= {"web"}


def test_catalog_services_detailed(agent: LabAgent) -> None:
    good("services", "register", "-name=web", "-id=web-1", "-address=10.0.0.5", "-port=80", "-tag=v1")
    agent.put("/v1/agent/check/register", {"Name": "up", "ServiceID": "web-1", "TTL": "1h"})
    agent.put("/v1/agent/check/update/up", {"Status": "warning", "Output": "slow\nsecond line"})
    virtual = VirtualAddress("web", "10.79.0.1")
    agent.call(agent.store.put(layout.store_key(virtual), layout.encode(virtual)))
    try:
        until(lambda: agent.get("/v1/weft/virtual-addresses").json == {"web": ["10.79.0.1"]})
        rows = [re.split(r" {3,}", line) for line in good("services", "list", "-detailed").splitlines()]
        assert rows[0] == [
            *("INSTANCE", "SERVICE", "NODE", "ADDRESS", "FROM OTHER HOSTS", "STATUS", "TAGS", "VIRTUAL ADDRESS")
        ]
        assert ["web-1", "web", "n1", "10.0.0.5:80", "everywhere", "warning", "v1", "10.79.0.1"] in rows
        found = next(one for one in json.loads(good("services", "list", "-detailed", "--json")) if one["ID"] == "web-1")
        assert (found["Status"], found["Output"], found["VirtualAddresses"]) == ("warning", "slow", ["10.79.0.1"])
        agent.put("/v1/agent/service/maintenance/web-1?enable=true&reason=mended")
        assert "maintenance" in good("services", "list", "-detailed=true")
        assert "STATUS" not in good("services", "list", "-detailed=false")
    finally:
        agent.call(agent.store.delete(layout.store_key(virtual)))


def test_catalog_nodes() -> None:
    assert good("catalog", "nodes").splitlines() == [
        "Node  ID        Address    DC",
        "n1    8f2d6c5e  127.0.0.1  dc1",
    ]
    header, row = good("catalog", "nodes", "-detailed").splitlines()
    assert header.split() == ["Node", "ID", "Address", "DC", "TaggedAddresses", "Meta"]
    assert row.split()[1] == "8f2d6c5e-0000-4000-8000-000000000001"
    assert "rack=a" in row and "lan=127.0.0.1, wan=127.0.0.1" in row
    assert good("catalog", "nodes", "-service=consul").splitlines()[1].startswith("n1 ")
    code, out, err = call("catalog", "nodes", "-filter", 'Meta.rack == "b"')
    assert (code, out, err) == (0, "", "No nodes match the given query - try expanding your search.\n")
    assert call("catalog", "nodes", "-filter", "((")[0] == 1
    assert good("catalog", "datacenters") == "dc1\n"


def test_members() -> None:
    header, row = good("members").splitlines()
    assert header.split() == ["Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Partition", "Segment"]
    assert row.split()[:4] == ["n1", "127.0.0.1:8301", "alive", "server"]
    assert row.split()[5:] == ["2", "dc1", "default", "<all>"]
    assert "role=consul" in good("members", "-detailed").splitlines()[1]
    assert call("members", "-status=failed") == (2, "", "")
    code, _, err = call("members", "-status=(")
    assert (code, err.startswith("Failed to compile status regexp: ")) == (1, True)


def test_the_address_of_the_agent(agent: LabAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = f"127.0.0.1:{agent.port}"
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
    assert "127.0.0.1:1: Connection refused" in call("members")[2]
    assert good("members", f"-http-addr=http://{own}/")
    monkeypatch.setenv("WEFT_HTTP_ADDR", own)
    assert good("members")
    monkeypatch.delenv("WEFT_HTTP_ADDR")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"unix://{tmp_path}/none.sock")
    code, _, err = call("services", "register", "-name=web")
    assert (code, err.splitlines()[0]) == (
        1,
        (
            f'Error registering service "web": cannot connect to the agent at unix://{tmp_path}/none.sock: '
            "No such file or directory"
        ),
    )


def test_the_agents_unix_socket_is_the_default(agent: LabAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSUL_HTTP_ADDR")
    monkeypatch.setattr(client, "agent_socket", lambda: str(agent.folder / "api.sock"))
    assert good("members")
    # Root never asks whoever has TCP port 8500; other users ask it only if it is root's or their own.
    missing = str(agent.folder / "none.sock")
    monkeypatch.setattr(client, "agent_socket", lambda: missing)
    monkeypatch.setattr(client.os, "geteuid", lambda: 0)
    assert client.default_address().path == missing
    monkeypatch.setattr(client.os, "geteuid", lambda: 1000)
    for owners, refused in ((set(), False), ({0}, False), ({1000}, False), ({1001}, True), ({0, 1001}, True)):
        monkeypatch.setattr(client, "_listening_users", lambda _, owners=owners: owners)
        if refused:
            code, _, err = call("services", "list")
            assert code == 1 and "not this host's agent: it belongs to user 1001" in err
        else:
            assert str(client.default_address()) == "http://127.0.0.1:8500"


def test_the_users_of_a_listening_port() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        assert client._listening_users(server.getsockname()[1]) == set()
        server.listen()
        assert client._listening_users(server.getsockname()[1]) == {os.getuid()}


@pytest.mark.parametrize(
    ("text", "tls", "found"),
    [
        ("127.0.0.1:8500", False, "http://127.0.0.1:8500"),
        ("127.0.0.1:8500", True, "https://127.0.0.1:8500"),
        ("host", False, "http://host:8500"),
        ("[::1]:1", False, "http://[::1]:1"),
        ("https://host:8501/consul/", False, "https://host:8501/consul"),
        ("unix:///run/x.sock", True, "unix:///run/x.sock"),
    ],
)
def test_addresses_in_consuls_syntax(text: str, tls: bool, found: str) -> None:
    assert str(client.parse_address(text, tls=tls)) == found


@pytest.mark.parametrize("text", ["", "http://", "unix://x", "ftp://x", "host:x", "host:99999", "ho st", "::1:"])
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(client.BadAgentAddress, match="is not a valid agent address"):
        client.parse_address(text)


def test_a_reply_of_another_server_is_an_error() -> None:
    import socketserver

    class Other(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n<html>")

    with socketserver.TCPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        code, _, err = call("members", f"-http-addr=127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert (code, "invalid response from" in err and err.rstrip().endswith("not JSON")) == (1, True)


class Watched:
    """``weft services watch`` in its own process; tests wait for its lines."""

    def __init__(self, *arguments: str) -> None:
        code = "import sys; from cni_plugin.cli import main; main()"
        command = [sys.executable, "-c", code, "services", "watch", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self) -> str:
        try:
            return self._lines.get(timeout=EXPECTED)
        except Empty:
            raise AssertionError("no line came") from None

    def ended(self) -> tuple[int, list[str]]:
        """The exit status, and the lines that were not asked for."""
        status = self.process.wait(EXPECTED)
        self._reader.join(EXPECTED)
        return status, list(self._lines.queue)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_watch_one_service(agent: LabAgent) -> None:
    good("services", "register", "-name=web", "-id=web-1", "-address=10.0.0.5", "-port=80")
    with Watched("web") as watched:
        assert re.fullmatch(r"[\d:]{8}  present {6}web  web-1  on n1  10.0.0.5:80  passing", watched.line())
        good("services", "register", "-name=web", "-id=web-2", "-address=10.0.0.6", "-port=80")
        assert re.fullmatch(r"[\d:]{8}  added {8}web  web-2  on n1  10.0.0.6:80  passing", watched.line())
        agent.put("/v1/agent/check/register", {"Name": "up", "ServiceID": "web-1", "TTL": "1h", "Status": "passing"})
        agent.put("/v1/agent/check/update/up", {"Status": "critical", "Output": "it is\ngone"})
        assert watched.line()[10:] == "critical     web  web-1  on n1  10.0.0.5:80  was passing: it is"
        good("services", "register", "-name=web", "-id=web-1", "-address=10.0.0.7", "-port=80", "-tag=v1")
        assert watched.line()[10:] == (
            "changed      web  web-1  on n1  10.0.0.7:80  was at 10.0.0.5:80  tags v1, were -"
        )
        good("services", "deregister", "-id=web-2")
        assert watched.line()[10:] == "removed      web  web-2  on n1  10.0.0.6:80"
        watched.process.send_signal(signal.SIGINT)
        assert watched.ended() == (130, [])


def test_watch_all_services_as_json(agent: LabAgent) -> None:
    with Watched("--json", "-once") as watched:
        first = json.loads(watched.line())
        assert (first["Change"], first["Service"]) == ("present", "consul")
        good("services", "register", "-name=web", "-port=80")
        found = json.loads(watched.line())
        assert (found["Change"], found["Service"], found["Status"], found["StatusBefore"]) == (
            "added", "web", "passing", None,
        )  # fmt: skip
        assert watched.ended() == (0, [])


def test_watch_without_an_agent() -> None:
    code, out, err = call("services", "watch", "-http-addr=127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.startswith(
        "Error watching services: cannot connect to the agent at http://127.0.0.1:1: Connection refused"
    )


def test_watch_continues_after_a_restart_of_the_agent(tmp_path: Path) -> None:
    node = Node("n2", "127.0.0.1")
    first = LabAgent(tmp_path, node, HttpSettings(listen=("127.0.0.1:0",)))
    settings = HttpSettings(listen=(f"127.0.0.1:{first.port}",))
    try:
        with Watched(f"-http-addr=127.0.0.1:{first.port}", "web") as watched:
            first.put("/v1/agent/service/register", {"Name": "web", "Port": 80})
            assert watched.line()[10:].startswith(("added", "present"))
            until(lambda: first.parked() > 0)
            first.stop()
            assert "retrying" in watched.line()
            first = LabAgent(tmp_path, node, settings)
            first.put("/v1/agent/service/register", {"Name": "web", "ID": "web-2", "Port": 81})
            assert "web-2" in watched.line()
    finally:
        first.stop()


@pytest.mark.parametrize("name", ["weft", "consul"])
def test_called_as_consul_the_commands_are_consuls(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(ROOT / "bin/weft")
    done = subprocess.run([tmp_path / name, "members", "-h"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"Usage: {name} members")
    assert subprocess.run([tmp_path / name, "members"], capture_output=True, timeout=60, check=False).returncode == 0
