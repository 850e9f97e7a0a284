"""Foreign IPAM plugins with weft's drivers, and weft's IPAM with foreign drivers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lab import seen
from lab.confs import DEFAULT4, SUBNET, bridge, network, ptp
from lab.host import Host
from lab.plugins import OWN_FOLDER, REFERENCE_FOLDER, Cni

ANSWER = {
    "cniVersion": "1.1.0",
    "ips": [{"address": "10.80.0.7/24", "gateway": "10.80.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["192.0.2.53"]},
}
CONF = bridge({"type": "fake", "flavour": "sweet"}, isGateway=True, extra={"Kept": [1, None]})


class Fake:
    """An IPAM plugin that records how it is called and gives a configured answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = f"/nowhere:{folder}:{OWN_FOLDER}"
        self.say(json.dumps(ANSWER))

    def say(self, text: str, *, status: int = 0, to: str = "ADD", before: str = "", stderr: str = "") -> None:
        """Set the answer for one command; all other commands succeed without output."""
        (self.folder / "answer").write_text(text)
        script = f"""#!/bin/sh
n=$(ls {self.folder} | grep -c '^call')
env >{self.folder}/call-$n-$CNI_COMMAND
cat >{self.folder}/stdin-$n-$CNI_COMMAND
[ "$CNI_COMMAND" = {to} ] || exit 0
{before}
printf '%s' '{stderr}' >&2
cat {self.folder}/answer
exit {status}
"""
        (self.folder / "fake").write_text(script)
        (self.folder / "fake").chmod(0o755)

    def calls(self) -> list[str]:
        """The commands that it was called with, in order."""
        found = sorted((path.name.split("-") for path in self.folder.glob("call-*")), key=lambda parts: int(parts[1]))
        return [parts[2] for parts in found]

    def last(self, command: str) -> tuple[dict[str, str], Any]:
        """Environment and standard input of the last call of a command."""
        path = max(self.folder.glob(f"call-*-{command}"), key=lambda one: int(one.name.split("-")[1]))
        lines = (line.partition("=") for line in path.read_text().splitlines())
        stdin = path.with_name(path.name.replace("call", "stdin")).read_text()
        return {name: value for name, _, value in lines}, json.loads(stdin)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_a_foreign_plugin_gives_the_addresses(host: Host, cni: Cni, fake: Fake, driver: str) -> None:
    conf = CONF if driver == "bridge" else ptp({"type": "fake"})
    netns = host.container()
    result = cni.add(conf, netns, path=fake.path)
    assert result["ips"][0]["address"] == "10.80.0.7/24" and result["dns"] == ANSWER["dns"]
    seen.agrees(host, result, netns)
    assert host.ping("c1", "10.80.0.1")
    cni.check(conf, result, netns, path=fake.path)
    assert cni("STATUS", conf, path=fake.path).code == 0
    cni.delete({**conf, "prevResult": result}, netns, path=fake.path)
    assert fake.calls() == ["ADD", "CHECK", "STATUS", "DEL"]
    assert seen.links(host, "c1") == ["lo"]


def test_a_collection_is_passed_on(host: Host, cni: Cni, fake: Fake) -> None:
    """Source: CNI specification section 4, "Delegated plugin execution procedure"."""
    netns = host.container()
    result = cni.add(CONF, netns, path=fake.path)
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    collected = {**CONF, "cni.dev/valid-attachments": valid}
    assert cni("GC", collected, path=fake.path).code == 0
    assert fake.calls() == ["ADD", "GC"] and fake.last("GC")[1] == collected
    cni.check(CONF, result, netns, path=fake.path)
    fake.say('{"code":142,"msg":"the shop is shut"}', status=1, to="GC")
    assert seen.problem(cni, "GC", {**CONF, "cni.dev/valid-attachments": []}, path=fake.path)["code"] == 142
    assert fake.calls()[-2:] == ["DEL", "GC"] and seen.links(host, "c1") == ["lo"]


def test_ipam_plugin_gets_the_runtimes_environment(host: Host, cni: Cni, fake: Fake) -> None:
    netns = host.container()
    args = "IgnoreUnknown=1;COLOUR=blue"
    result = cni.add(CONF, netns, path=fake.path, args=args, extra={"SOMETHING": "else"})
    cni.check(CONF, result, netns, path=fake.path, args=args)
    cni.delete({**CONF, "prevResult": result}, netns, path=fake.path, args=args)
    for command in ("ADD", "CHECK", "DEL"):
        environment, stdin = fake.last(command)
        assert environment["CNI_COMMAND"] == command
        assert environment["CNI_CONTAINERID"] == "c1" and environment["CNI_IFNAME"] == "eth0"
        assert environment["CNI_NETNS"] == netns and environment["CNI_PATH"] == fake.path
        assert environment["CNI_ARGS"] == args
        assert {key: value for key, value in stdin.items() if key != "prevResult"} == CONF
    assert fake.last("ADD")[0]["SOMETHING"] == "else"
    assert fake.last("CHECK")[1]["prevResult"]["ips"][0]["address"] == "10.80.0.7/24"


def test_ipam_plugin_error_is_passed_on(host: Host, cni: Cni, fake: Fake) -> None:
    """The plugin's code, msg and details are passed on, and DEL is called for its failed ADD."""
    seen.forward(host)
    before = host.snapshot()
    fake.say('{"cniVersion":"1.1.0","code":142,"msg":"the shop is shut","details":"come on Monday"}', status=1)
    problem = seen.problem(cni, "ADD", CONF, host.container(), path=fake.path)
    assert problem["code"] == 142 and "the shop is shut" in problem["msg"] and "Monday" in problem["details"]
    assert problem["cniVersion"] == "1.1.0"
    assert host.changes(before) == []
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize(
    "answer",
    ["", "hello", "[]", '"text"', '{"cniVersion":"1.1.0","ips":[{"address":"10.80.0.7"}]}', '{"ips":3}', "{} {}"],
)
def test_malformed_ipam_output_is_an_error(host: Host, cni: Cni, fake: Fake, answer: str) -> None:
    seen.forward(host)
    before = host.snapshot()
    fake.say(answer)
    problem = seen.problem(cni, "ADD", CONF, host.container(), path=fake.path)
    assert problem["code"] == 106 and "fake" in problem["msg"]
    assert host.changes(before) == []
    assert fake.calls() == ["ADD", "DEL"]


@pytest.mark.parametrize("failing", ["exit 3", "kill -9 $$", "echo oops >&2; exit 1"])
def test_ipam_plugin_exit_status_and_signals(host: Host, cni: Cni, fake: Fake, failing: str) -> None:
    fake.say("", before=failing)
    outcome = cni("ADD", CONF, netns=host.container(), path=fake.path)
    assert outcome.code == 1 and outcome.json["code"] == 106 and "fake" in outcome.json["msg"]
    assert ("oops" in outcome.stderr) is ("oops" in failing)


def test_ipam_plugin_stderr_is_passed_on(host: Host, cni: Cni, fake: Fake) -> None:
    fake.say(json.dumps(ANSWER), stderr="by the way")
    outcome = cni("ADD", CONF, netns=host.container(), path=fake.path)
    assert outcome.code == 0 and outcome.stderr == "by the way"


def test_a_plugin_that_is_missing(host: Host, cni: Cni, tmp_path: Path) -> None:
    before = host.snapshot()
    (tmp_path / "fake").write_text("#!/bin/sh\n")
    problem = seen.problem(cni, "ADD", CONF, host.container(), path=str(tmp_path))
    assert 'failed to find plugin "fake"' in problem["msg"] and str(tmp_path) in problem["msg"]
    assert host.changes(before) == []
    assert cni("STATUS", CONF, path=str(tmp_path)).json["code"] == 50


@pytest.mark.parametrize("name", ["../fake", "/bin/true", "..", "a/b", "weft"])
@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS"])
def test_plugin_name_with_a_path_is_refused(host: Host, cni: Cni, fake: Fake, name: str, command: str) -> None:
    """CVE-2021-20206: a plugin's name is not a path."""
    inner = fake.folder / "inner"
    inner.mkdir()
    outcome = cni(command, bridge({"type": name}), netns=host.container(), path=str(inner))
    assert fake.calls() == []
    if command != "DEL":
        assert outcome.code == 1 and outcome.json["code"] in (7, 50), outcome
    assert seen.links(host, "c1") == ["lo"]


def test_a_failed_add_frees_what_it_was_given(host: Host, cni: Cni, fake: Fake) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "address", "add", "10.99.0.1/24", "dev", "br0")
    assert seen.problem(cni, "ADD", CONF, host.container(), path=fake.path)["code"] == 101
    assert fake.calls() == ["ADD", "DEL"]
    cni.delete(CONF, "/run/netns/c1", path=fake.path)
    assert fake.calls() == ["ADD", "DEL", "DEL"]


def test_a_failing_del_removes_all_else_and_can_be_repeated(host: Host, cni: Cni, fake: Fake) -> None:
    netns = host.container()
    cni.add(CONF, netns, path=fake.path)
    fake.say('{"code":11,"msg":"later"}', status=1, to="DEL")
    problem = seen.problem(cni, "DEL", CONF, netns, path=fake.path)
    assert problem["code"] == 11 and "later" in problem["msg"]
    assert seen.links(host, "c1") == ["lo"]
    fake.say(json.dumps(ANSWER))
    cni.delete(CONF, netns, path=fake.path)
    assert fake.calls()[-2:] == ["DEL", "DEL"]


def test_check_passes_the_ipam_error_on(host: Host, cni: Cni, fake: Fake) -> None:
    netns = host.container()
    result = cni.add(CONF, netns, path=fake.path)
    fake.say('{"code":17,"msg":"the lease ran out"}', status=1, to="CHECK")
    problem = seen.problem(cni, "CHECK", {**CONF, "prevResult": result}, netns, path=fake.path)
    assert "the lease ran out" in problem["msg"]


def test_hanging_ipam_plugin_is_killed_with_weft(host: Host, cni: Cni, fake: Fake) -> None:
    """If a runtime times out and kills weft, the IPAM plugin must not reserve an address."""
    fake.say(json.dumps(ANSWER), before=f"echo $$ >{fake.folder}/pid; exec sleep 60")
    environment = cni.environment("ADD", netns=host.container(), path=fake.path)
    process = subprocess.Popen(
        [str(cni.folder / "bridge")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(CONF).encode())
    process.stdin.close()
    deadline = time.monotonic() + 10
    while not (fake.folder / "pid").exists() or not (fake.folder / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    plugin = int((fake.folder / "pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    while os.path.exists(f"/proc/{plugin}") and "Z" not in Path(f"/proc/{plugin}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the plugin outlives its caller"
        time.sleep(0.02)
    fake.say(json.dumps(ANSWER))
    cni.delete(CONF, "/run/netns/c1", path=fake.path)
    assert fake.calls()[-1] == "DEL"


@pytest.fixture
def reference() -> Cni:
    if not (REFERENCE_FOLDER / "macvlan").exists():
        pytest.skip("the reference plugins are not in /usr/lib/cni (Debian: containernetworking-plugins)")
    return Cni(REFERENCE_FOLDER)


@pytest.mark.parametrize("kind", ["host-local", "static", "dhcp"])
def test_the_references_ipam_under_weft(host: Host, cni: Cni, reference: Cni, tmp_path: Path, kind: str) -> None:
    """Under another name, since weft runs its own host-local in-process."""
    (tmp_path / "theirs").symlink_to(REFERENCE_FOLDER / kind)
    conf = bridge({"type": "theirs", "subnet": SUBNET, "routes": [DEFAULT4]}, version="1.0.0", isGateway=True)
    if kind == "static":
        conf["ipam"] = {"type": "theirs", "addresses": [{"address": "10.80.0.2/24"}], "routes": [DEFAULT4]}
    netns = host.container()
    if kind == "dhcp":
        assert "dhcp" in seen.problem(cni, "ADD", conf, netns, path=str(tmp_path))["msg"]
        assert seen.links(host, "c1") == ["lo"]
        return
    result = cni.add(conf, netns, path=str(tmp_path))
    assert result["ips"][0]["address"] == "10.80.0.2/24"
    assert host.ping("c1", "10.80.0.1")
    cni.check(conf, result, netns, path=str(tmp_path))
    cni.delete({**conf, "prevResult": result}, netns, path=str(tmp_path))
    assert list(Path("/var/lib/cni/networks/net").glob("10.*")) == []


@pytest.mark.parametrize("kind", ["host-local", "static"])
def test_wefts_ipam_under_the_references_macvlan(host: Host, reference: Cni, kind: str) -> None:
    host.lan()
    ipam = {"type": kind, "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "routes": [DEFAULT4]}
    if kind == "static":
        ipam = {"type": kind, "addresses": [{"address": "192.0.2.50/24", "gateway": "192.0.2.1"}]}
    conf = network("macvlan", ipam, version="1.0.0", master="lan0")
    netns = host.container()
    path = f"{OWN_FOLDER}:{REFERENCE_FOLDER}"
    result = reference.add(conf, netns, path=path)
    assert result["ips"] == [{"address": "192.0.2.50/24", "gateway": "192.0.2.1", "interface": 0}]
    assert host.ping("c1", "192.0.2.2")
    reference.check(conf, result, netns, path=path)
    reference.delete({**conf, "prevResult": result}, netns, path=path)
    assert list(Path("/var/lib/cni/networks/net").glob("192.*")) == []
