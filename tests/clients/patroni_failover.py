"""Patroni with two PostgreSQL nodes, its leader key in weft: fails over when it should, and only then.

Run by run.py in a private network namespace, with the virtual environment that has Patroni; Debian's
postgresql has the server. PostgreSQL does not run as root: the nodes run as user postgres.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import weft_agent

TTL = 20
CONFIG = """
scope: lab
name: {name}
restapi: {{listen: "127.0.0.1:{rest}", connect_address: "127.0.0.1:{rest}"}}
consul: {{host: "127.0.0.1:8500", register_service: true}}
bootstrap:
  dcs: {{ttl: {ttl}, loop_wait: 2, retry_timeout: 5, maximum_lag_on_failover: 1048576}}
  initdb: [{{encoding: UTF8}}, {{auth-local: trust}}, {{auth-host: trust}}]
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {folder}/{name}
  bin_dir: {binaries}
  pgpass: {folder}/{name}.pass
  authentication: {{superuser: {{username: postgres, password: a}}, replication: {{username: repl, password: b}}}}
  parameters: {{unix_socket_directories: {folder}, fsync: "off"}}
  pg_hba: ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust", "local all all trust"]
"""
NODES = {"n1": (18008, 15432), "n2": (18009, 15433)}


class Lab:
    """Two nodes and an agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.agent = weft_agent.Agent(folder / "weft")  # replaced by ``upgrade``

    def start(self, name: str) -> None:
        rest, port = NODES[name]
        binaries = os.path.dirname(sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))[-1])
        config = self.folder / f"{name}.yml"
        config.write_text(
            CONFIG.format(name=name, rest=rest, port=port, folder=self.folder, binaries=binaries, ttl=TTL)
        )
        with open(self.folder / f"{name}.log", "ab") as log:
            self.nodes[name] = subprocess.Popen(
                [os.path.join(os.path.dirname(sys.executable), "patroni"), str(config)],
                stdout=log, stderr=log, user="postgres", group="postgres", extra_groups=[], start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}, cwd=self.folder,
            )  # fmt: skip

    def role(self, name: str) -> str:
        """What a node says it is: "primary", "replica" or ""."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{NODES[name][0]}/patroni", timeout=3) as reply:
                found = json.load(reply)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        except (OSError, ValueError):
            return ""
        return str(found.get("role", "")) if found.get("state") == "running" else ""

    def leader(self) -> str:
        """The holder of the leader key."""
        try:
            with urllib.request.urlopen("http://127.0.0.1:8500/v1/kv/service/lab/leader?raw", timeout=5) as reply:
                return str(reply.read().decode())
        except OSError:
            return ""

    def stays(self, leader: str, seconds: float) -> None:
        """The leader holds the key for so long, as far as the agent says."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.leader()
            assert found in ("", leader), f"failed over from {leader} to {found}"
            time.sleep(0.2)
        until(lambda: self.leader() == leader, TTL)

    def close(self) -> None:
        for process in self.nodes.values():
            os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
        for process in self.nodes.values():
            process.wait(60)
        self.agent.stop()


def until(test, seconds: float) -> float:
    """Wait for a condition; the seconds it took."""
    begun = time.monotonic()
    while not test():
        assert time.monotonic() - begun < seconds, "the condition did not become true"
        time.sleep(0.2)
    return time.monotonic() - begun


def step(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def failover(lab: Lab) -> None:
    lab.agent.start()
    lab.start("n1")
    until(lambda: lab.role("n1") in ("primary", "master") and lab.leader() == "n1", 180)
    lab.start("n2")
    until(lambda: lab.role("n2") == "replica", 180)
    step("n1 leads, n2 follows")
    os.kill(lab.nodes["n1"].pid, signal.SIGSTOP)
    lab.stays("n1", TTL / 2)
    os.kill(lab.nodes["n1"].pid, signal.SIGCONT)
    lab.stays("n1", TTL / 2)
    step(f"n1 led on over a pause of {TTL // 2} s, half its ttl")
    for number in (signal.SIGTERM, signal.SIGKILL):
        lab.agent.stop(number)
        time.sleep(2)
        lab.agent.start()
        lab.stays("n1", TTL)
        assert lab.role("n1") in ("primary", "master")
        step(f"n1 leads after the agent's {number.name} and restart")
    os.killpg(lab.nodes["n1"].pid, signal.SIGKILL)
    for process in (lab.folder / "n1" / "postmaster.pid").read_text().split()[:1]:
        os.kill(int(process), signal.SIGKILL)
    lab.nodes.pop("n1").wait()
    took = until(lambda: lab.leader() == "n2" and lab.role("n2") in ("primary", "master"), 3 * TTL)
    step(f"n2 took over {took:.1f} s after n1 was killed")
    lab.start("n1")
    until(lambda: lab.role("n1") == "replica", 180)
    assert lab.leader() == "n2"
    step("n1 follows n2")
    if previous := os.environ.get("WEFT_PREVIOUS"):
        upgrade(lab, previous)


def upgrade(lab: Lab, previous: str) -> None:
    """The agent of an earlier commit is replaced by this one while n2 leads: first back, with an
    empty catalog as after an installation, then on.
    """
    lab.agent.stop()
    for name in tuple(lab.nodes):
        os.kill(lab.nodes[name].pid, signal.SIGTERM)
        lab.nodes.pop(name).wait(60)
    lab.agent = weft_agent.Agent(lab.folder / "upgraded", previous)
    lab.agent.start()
    for name in ("n2", "n1"):
        lab.start(name)
    until(lambda: lab.leader() in NODES and {lab.role(name) for name in NODES} == {"replica", "primary"}, 180)
    leader = lab.leader()
    lab.agent.stop()
    lab.agent = weft_agent.Agent(lab.folder / "upgraded")
    lab.agent.start()
    lab.stays(leader, 2 * TTL)
    assert lab.role(leader) in ("primary", "master")
    step(f"{leader} leads after the agent was upgraded")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chmod(folder, 0o755)
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        lab = Lab(folder)
        try:
            failover(lab)
        except BaseException:
            for log in folder.glob("*.log"):
                print(log, log.read_text()[-3000:], sep="\n")
            raise
        finally:
            lab.close()


if __name__ == "__main__":
    main()
