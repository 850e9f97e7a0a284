"""Operations that reserve addresses: in a host-local directory, or with another IPAM plugin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_interface

from cni_plugin.ops.operation import Lease, Machine
from cni_plugin.wire.result import parse, render
from cni_plugin.wire.versions import at_least
from ipam import host_local
from ipam.leases import Owner
from weft import overlay
from weft.errors import NOT_AVAILABLE, Busy, ConfigProblem, PluginFailed, WeftError
from weft.section import Problems
from weft.types import Cidr, Result


@dataclass(frozen=True, slots=True)
class PoolLease(Lease):
    """Addresses from weft's pools, in host-local's file format. ``file`` is that of an overlay network, which
    says what blocks the host has.
    """

    pool: host_local.Pool
    owner: Owner
    addresses: tuple[Cidr, ...] = ()
    file: str = ""

    def reserve(self, machine: Machine) -> Result:
        """Raises Busy also where the host has just given away the block that it leased from, and Conflict
        where another host has a requested static address.
        """
        claimed = self._claim(machine)
        try:
            found = host_local.reserve(self.pool, self.owner, machine.leases)
        except WeftError:
            if claimed:
                self._end_claim(machine)
            raise
        if self.file:
            # The agent takes a block out of the file, and then looks for leases; here it is the other way round.
            blocks = overlay.read_network(self.file, self.pool.network).blocks
            for address in (ip.address.ip for ip in found.ips):
                if not any(one.version == address.version and address in one for one in blocks):
                    self.undo(machine)
                    raise Busy(f"{address} is no longer in a block of this host", hint="try again")
        return found

    def preview(self, machine: Machine) -> Result:
        return host_local.preview(self.pool, self.owner, machine.leases)

    def available(self, machine: Machine) -> None:
        host_local.available(self.pool, machine.leases)

    def holding(self, answer: Result) -> Lease:
        return replace(self, addresses=tuple(ip.address for ip in answer.ips))

    def gateways(self) -> tuple[Cidr, ...]:
        """The gateways of all ranges, each with its subnet's prefix length."""
        return tuple(
            ip_interface((one.gateway, one.subnet.prefixlen))
            for ranges in self.pool.sets
            for one in ranges
            if one.gateway is not None
        )

    def undo(self, machine: Machine) -> None:
        host_local.release(self.pool.directory, self.pool.network, self.owner, machine.leases)
        if self.file and self.pool.requested:
            self._end_claim(machine)

    def _claim(self, machine: Machine) -> bool:
        """Have the cluster record that static addresses are at this host; whether there are any."""
        if not self.file or not self.pool.requested:
            return False
        network = overlay.read_network(self.file, self.pool.network)
        asked = [one for one in self.pool.requested if network.kept and network.is_static(one)]
        if asked:
            from cni_plugin.ops import claiming  # only containers with static addresses need it

            claiming.claim(machine, self.pool.network, self.owner, asked)
        return bool(asked)

    def _end_claim(self, machine: Machine) -> None:
        from cni_plugin.ops import claiming

        claiming.end(machine, self.pool.network, self.owner, self.pool.requested)

    def mismatch(self, machine: Machine) -> str | None:
        return host_local.lacks(self.pool, self.owner, self.addresses, machine.leases)

    def commands(self, namespace: str) -> tuple[str, ...]:
        owner = rf"{self.owner.container}\r\n{self.owner.interface}"
        return tuple(f"printf '{owner}' > {self.pool.directory}/{address.ip}" for address in self.addresses)


@dataclass(frozen=True, slots=True)
class ForeignLease(Lease):
    """Addresses from another IPAM plugin, by its ADD, DEL, CHECK, GC and STATUS.

    ``environment`` holds the CNI_* variables of the attachment, ``config`` the network configuration as
    JSON text. Source: CNI specification section 4, "Plugin delegation".
    """

    name: str
    version: str
    environment: tuple[tuple[str, str], ...]
    config: str
    answer: str = ""

    def _call(self, machine: Machine, command: str) -> bytes:
        config = json.loads(self.config)
        if self.answer and at_least(self.version, "0.4.0"):
            config["prevResult"] = json.loads(self.answer)
        variables: Mapping[str, str] = dict(self.environment)
        return machine.delegate(self.name, command, variables, json.dumps(config).encode())

    def reserve(self, machine: Machine) -> Result:
        problems = Problems()
        try:
            answer = parse(json.loads(self._call(machine, "ADD")), self.version, problems)
            problems.raise_any()
        except (ValueError, ConfigProblem) as error:
            self.undo(machine)
            raise PluginFailed(f"the IPAM plugin {self.name} returned no valid result from ADD: {error}") from error
        return answer

    def preview(self, machine: Machine) -> Result:
        raise WeftError(
            f"cannot tell which address the IPAM plugin {self.name} would return",
            hint="weft plan supports ipam types host-local and static",
        )

    def available(self, machine: Machine) -> None:
        if at_least(self.version, "1.1.0"):
            try:
                self._call(machine, "STATUS")
            except WeftError as error:
                raise WeftError(error.message, hint=error.hint, code=NOT_AVAILABLE) from error

    def holding(self, answer: Result) -> Lease:
        return replace(self, answer=render(answer, self.version).decode())

    def undo(self, machine: Machine) -> None:
        self._call(machine, "DEL")

    def mismatch(self, machine: Machine) -> str | None:
        if not at_least(self.version, "0.4.0"):
            return None
        try:
            self._call(machine, "CHECK")
        except WeftError as error:
            return error.message
        return None

    def collect(self, machine: Machine) -> None:
        """Have the plugin free what is not of the attachments that ``config`` lists as valid."""
        self._call(machine, "GC")

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"CNI_COMMAND=ADD {self.name} < CONFIGURATION",)
