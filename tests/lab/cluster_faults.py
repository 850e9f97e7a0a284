"""Faults of an etcd cluster and of the hosts that use it, drawn by a seed; each ends as it began."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.nodes import ALIVE_SECONDS
from lab.etcd import CONT, KILL, STOP, Cluster
from lab.hosts import Machine, Machines, processes_within
from lab.waiting import until

_ETCD_PORT = 2379
_AGREED, _SAVED = 60.0, 3.0
"""Seconds until all hosts have seen what happened, and until they have saved it, on a busy machine."""
Fault = Callable[[], None]


class Faults:
    """Two threads, one for etcd and one for the hosts, which take every kind of fault in turn, in an order that
    ``seed`` gives. ``longest`` is how many seconds a member, an agent or a host is stopped or cut off at most.
    """

    def __init__(self, etcd: Cluster, hosts: Machines, network: str, seed: str, longest: float) -> None:
        self._etcd, self._hosts, self._network = etcd, hosts, network
        self._longest = longest
        self._folder = tempfile.mkdtemp(prefix="weft-snapshots-", dir="/dev/shm")
        self._snapshot: Path | None = None
        self._changing = threading.Lock()
        """Held while a host is not as it should be: an operator who accepts a restored cluster starts agents."""
        self._ended = threading.Event()
        self._dice = {one: random.Random(f"{seed} {one}") for one in ("etcd", "hosts")}
        self.done: list[str] = []
        self.errors: list[BaseException] = []
        kinds: dict[str, tuple[Fault, ...]] = {
            "etcd": (self.kill_member, self.kill_leader, self.stop_member, self.stop_majority, self.compact,
                     self.restore),
            "hosts": (self.kill_agent, self.stop_agent, self.stop_host, self.cut_host, self.lose_watches,
                      self.compact_unseen, self.readdress, self.vanish,
                      *((self.outlive_lease,) if longest > ALIVE_SECONDS else ())),
        }  # fmt: skip
        self._kinds = {one.__name__ for each in kinds.values() for one in each}
        self._threads = [threading.Thread(target=self._run, args=one) for one in kinds.items()]

    def __enter__(self) -> Faults:
        self._save()
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for one in self._threads:
            one.join()
        shutil.rmtree(self._folder)

    @property
    def every(self) -> bool:
        """Whether there was a fault of every kind."""
        return self._kinds <= {*self.done}

    def _run(self, where: str, kinds: tuple[Fault, ...]) -> None:
        dice = self._dice[where]
        try:
            while not self._ended.is_set():
                for fault in dice.sample(kinds, len(kinds)):
                    if self._ended.is_set():
                        return
                    with self._changing if where == "hosts" else contextlib.nullcontext():
                        fault()
                    self.done.append(fault.__name__)
                    self._ended.wait(dice.uniform(0.2, 1.0))
        except BaseException as error:
            self.errors.append(error)

    def _wait(self, where: str) -> None:
        """As long as a fault lasts: half of them briefly, and none longer than until the end."""
        dice = self._dice[where]
        self._ended.wait(dice.uniform(0.2, 3.0) if dice.random() < 0.5 else self._longest)

    def _host(self) -> Machine:
        return self._dice["hosts"].choice([*self._hosts.all.values()])

    # Of etcd

    def kill_member(self) -> None:
        one = self._dice["etcd"].randrange(3)
        self._etcd.signal(one, KILL)
        self._wait("etcd")
        self._etcd.start(one)

    def kill_leader(self) -> None:
        self._etcd.wait()
        self._etcd.restart(self._etcd.leader())

    def stop_member(self) -> None:
        self._stop(self._dice["etcd"].sample(range(3), 1))

    def stop_majority(self) -> None:
        self._stop(self._dice["etcd"].sample(range(3), 2))

    def _stop(self, members: list[int]) -> None:
        for one in members:
            self._etcd.signal(one, STOP)
        self._wait("etcd")
        for one in members:
            self._etcd.signal(one, CONT)

    def compact(self) -> None:
        status = self._etcd.ctl("endpoint", "status", "--write-out", "json", check=False)
        if not status.code:
            self._etcd.ctl("compact", str(status.json[0]["Status"]["header"]["revision"]), check=False)

    def restore(self) -> None:
        """All members start from what was saved at the last such fault, and each host's operator accepts it later.
        All hosts know of the same blocks then: of what one has not seen yet, since it was away before, it takes what
        another one has claimed for free.
        """
        with self._changing:
            until(self._ends_in_agreement, _AGREED, lambda: f"agreement of the hosts: {self._known()}")
            assert self._snapshot is not None
            self._etcd.replace_data(self._snapshot)
            self._ended.wait(self._dice["etcd"].uniform(0.2, 3.0))
            for number in self._dice["etcd"].sample([*self._hosts.all], len(self._hosts.all)):
                one = self._hosts[number]
                _end(one)
                one.run("rm", "-rf", f"/run/weft/{one.inode}/agent/etcd")
                one.up()
                self._ended.wait(self._dice["etcd"].uniform(0.0, 2.0))
            self._save()

    def _ends_in_agreement(self) -> bool:
        """Stop all of etcd, which goes on unless all hosts have the same blocks in their files."""
        self._etcd.wait()
        self._etcd.stop()
        if self._is_agreed():
            return True
        for member in range(len(self._etcd.endpoints)):
            self._etcd.start(member)
        return False

    def _is_agreed(self) -> bool:
        """Whether all hosts soon know the same: a pass that has begun may have to save it."""
        with contextlib.suppress(AssertionError):
            until(lambda: len({*self._known().values()}) == 1, _SAVED)
            return True
        return False

    def _known(self) -> dict[str, frozenset[tuple[str, str]]]:
        """The blocks and their values that each host has in its file, by host."""
        prefix, found = f"/weft/v2/overlay/block/{self._network}/", {}
        for one in self._hosts.all.values():
            entries = one.read(f"/run/weft/{one.inode}/agent/overlay/networks.json")["entries"]
            found[one.name] = frozenset((key, value) for key, value, *_ in entries if key.startswith(prefix))
        return found

    def _save(self) -> None:
        found = Path(self._folder) / f"{len(self.done)}.db"
        self._etcd.ctl("snapshot", "save", str(found), endpoint=0)
        self._snapshot = found

    # Of hosts

    def kill_agent(self) -> None:
        one = self._host()
        _end(one)
        one.up()

    def stop_agent(self) -> None:
        self._stopped(lambda one: [one.agent])

    def stop_host(self) -> None:
        """All of a host: its agent and its workers, and calls of its runtime that are under way."""
        self._stopped(lambda one: processes_within(one.inode))

    def _stopped(self, of: Callable[[Machine], list[int]]) -> None:
        with self._frozen([one for one in of(self._host()) if one]):
            self._wait("hosts")

    @contextlib.contextmanager
    def _frozen(self, processes: list[int]) -> Iterator[None]:
        try:
            _signal(processes, signal.SIGSTOP)
            yield
        finally:
            _signal(processes, signal.SIGCONT)

    def cut_host(self) -> None:
        with self._cut(self._host()):
            self._wait("hosts")

    def outlive_lease(self) -> None:
        """A host is cut off, or all of it stopped, until the store has nothing any more that is bound to its
        lease, and for a while after that; then it is back, and takes for its own what it had.
        """
        one, dice = self._host(), self._dice["hosts"]
        kind = dice.choice(("cut", "stopped"))
        end = time.monotonic() + 4 * self._longest  # a new leader counts a lease from its beginning
        with self._cut(one) if kind == "cut" else self._frozen(processes_within(one.inode)):
            while (leased := self._is_leased(one)) and time.monotonic() < end and not self._ended.wait(1.0):
                pass
            if not leased:
                self.done.append(f"{kind} past the lease")
            self._ended.wait(dice.uniform(0.2, 10.0))

    def _is_leased(self, one: Machine) -> bool:
        """Whether the store has a key of a host with a lease, or does not answer."""
        found = self._etcd.ctl("get", "--prefix", "/weft/", "--write-out", "json", check=False)
        if found.code:
            return True
        keys = (base64.b64decode(each["key"]).decode() for each in found.json.get("kvs", ()) if each.get("lease"))
        return any(one.name in key.split("/") for key in keys)

    @contextlib.contextmanager
    def _cut(self, one: Machine) -> Iterator[None]:
        one.cut()
        try:
            yield
        finally:
            one.cut(False)

    def lose_watches(self) -> None:
        """Each connection of an agent to etcd is reset, and none can be made for a while."""
        one = self._host()
        rule = f"tcp dport {_ETCD_PORT} reject with tcp reset"
        one.run("nft", f"table inet lost {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}")
        time.sleep(self._dice["hosts"].uniform(0.2, 2.0))
        one.run("nft", "delete", "table", "inet", "lost")

    def compact_unseen(self) -> None:
        """What a host has missed is compacted before it can read it."""
        with self._cut(self._host()):
            self._wait("hosts")
            self.compact()

    def readdress(self) -> None:
        """A host gets another address; the former one is the next one of this fault."""
        one = self._host()
        former = one.address
        head, _, number = former.rpartition(".")
        one.address = f"{head}.{int(number) + 50 if int(number) < 150 else int(number) - 50}"
        text = one.path("/etc/weft/weft.toml").read_text().replace(f'"{former}"', f'"{one.address}"')
        one.write("/etc/weft/weft.toml", text)
        # In this order: the kernel deletes the others of a subnet with the first one.
        one.run("ip", "address", "delete", f"{former}/24", "dev", "eth0")
        one.run("ip", "address", "add", f"{one.address}/24", "dev", "eth0")
        _end(one)
        one.up()

    def vanish(self) -> None:
        """The store has lost what one host says of its part, when another reads all of it anew."""
        other, one = self._dice["hosts"].sample([*self._hosts.all.values()], 2)
        _end(one)
        self._etcd.ctl("del", f"/weft/v2/overlay/member/{other.name}/{self._network}", check=False)
        one.up()


def _end(one: Machine) -> None:
    """Kill the agent, if there is one."""
    if process := one.agent:
        _signal([process], signal.SIGKILL)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)
