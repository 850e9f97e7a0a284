"""``host-device``: moves a link of the host into the container; DEL moves it back, down.

Keys: one of ``device`` (its name), ``hwaddr``, ``kernelpath`` (under /sys/devices), ``pciBusID``, which
runtimeConfig.deviceID (a PCI address, or an auxiliary device's name) overrides; ``enabledad``,
``ipam``. A device bound to a userspace driver (DPDK) has no link to move: then only addresses are
reserved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cni_plugin.ops.devices import lend
from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, Parent
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import ConfigProblem
from weft.kernel.values import Link
from weft.section import Section, quoted
from weft.types import ResultInterface, Side

DRIVER = Driver(link_kind="", parent=Parent.LENT, parent_key="device", plugin=True, default_ipam="none")
_USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
_BUS_ADDRESS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.:\-]*$")
_DEVICES = "/sys/devices/"


@dataclass(frozen=True, slots=True)
class HostDevice:
    """Which link: by name, MAC address, path in sysfs or ``bus`` address; the first that is set counts."""

    name: str
    mac: str
    path: str
    bus: str
    detect: bool
    addressed: bool

    def plan(self, context: Context) -> Plan:
        device = context.facts.device(self.bus) if self.bus else None
        if device is not None and device.driver in _USERSPACE_DRIVERS:
            return Plan(result=context.result)
        link = self._link(context)
        moved = lend(link, context.attachment)
        interface_in_result = ResultInterface(
            moved.container, link.mac, context.namespace.path, link.mtu, pci_id=self.bus
        )
        return interface.attach(
            context,
            moved,
            interface_in_result,
            context.result,
            detect=self.detect,
            addressed=self.addressed and not context.pending,
        )

    def _link(self, context: Context) -> Link:
        """The link; raises ConfigProblem if there is no such link, or it cannot be moved."""
        links = {} if self.name else {link.name: link for link in context.facts.links(Side.HOST)}
        if self.name:
            found, what = context.facts.link(Side.HOST, self.name), f"device {self.name}"
        elif self.mac:
            found = next((link for link in links.values() if link.mac == self.mac and link.name != "lo"), None)
            what = f"hwaddr {self.mac}"
        else:
            location = self.path or self.bus
            device = context.facts.device(location)
            served = device.links if device is not None else ()
            found = next((links[name] for name in served if name in links), None)
            what = f"{'kernelpath' if self.path else 'pciBusID'} {location}"
        if found is None:
            raise ConfigProblem(f"no link found for {what}", hint="list the host's links with: ip -d link show")
        if found.name == "lo":
            raise ConfigProblem(
                "device lo cannot be moved: each network namespace has its own", hint="use another device"
            )
        return found


def read(request: Request, keys: Section) -> PlanPart | None:
    override = request.config.runtime.text("deviceID")
    name = interface.read_link(keys, "device", longest=identity.ALTNAME_BYTES) if keys.text("device") else ""
    mac, path = "", keys.text("kernelpath")
    bus = override or keys.text("pciBusID")
    if keys.text("hwaddr"):
        try:
            mac = identity.normal_mac(keys.text("hwaddr"))
        except ValueError as error:
            keys.problem("hwaddr", str(error))
    if path and (not path.startswith(_DEVICES) or ".." in path.split("/")):
        keys.problem("kernelpath", f"must begin with {_DEVICES}")
    if bus and not _BUS_ADDRESS.fullmatch(bus):
        where = "runtimeConfig.deviceID" if override else "pciBusID"
        keys.problems.add(f"{where} {quoted(bus)} must be a device address like 0000:00:1f.6")
    if not any((name, keys.text("hwaddr"), path, bus)):
        keys.problems.add("specify either device, hwaddr, kernelpath or pciBusID")
    addressed = bool(request.config.ipam.text("type"))
    return HostDevice(name, mac, path, bus, keys.flag("enabledad"), addressed)
