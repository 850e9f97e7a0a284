"""Hosts of a cluster that are booted by this machine's systemd, with a disk that outlives a reboot."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lab.commands import Outcome
from lab.many_hosts import ROOT, ClusterHost
from lab.waiting import until

SYSTEMD = "/lib/systemd/systemd"
_WEFT = "/opt/weft"
"""Where units find weft, wherever the checkout is: they see no other /tmp, and no home to write."""
_BOOT_SECONDS = 60.0
_DISK = ("/etc/systemd/system", "/etc/weft", "/etc/cni", "/var/lib/weft", "/var/lib/cni", "/var/log")
_WANTS = "/usr/lib/systemd/system/*.target.wants /usr/lib/systemd/system-generators"
# Of the machine's units none is started but the journal, and process 1 may set no sysctl but those of its network.
_MOUNTS = """
{etcd}
for folder in {disk}; do mkdir -p "$folder" "{place}$folder"; mount --bind "{place}$folder" "$folder"; done
for folder in {wants} /var/lib/systemd /opt; do mkdir -p "$folder"; mount -t tmpfs tmpfs "$folder"; done
mkdir {weft}
mount --bind "{root}" {weft}
for folder in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
mkdir -p /etc/systemd/system/sysinit.target.wants
ln -sf /usr/lib/systemd/system/systemd-journald.service /etc/systemd/system/sysinit.target.wants
ln -sf /usr/lib/systemd/system/multi-user.target /etc/systemd/system/default.target
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
umount -R /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/{group}"
echo $$ >"/sys/fs/cgroup/{group}/cgroup.procs"
"""
# The cgroup that process 1 is in is the root of what it sees.
_LAST = f"""
exec unshare --cgroup sh -ec 'umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env -i container=weft PATH=/usr/sbin:/usr/bin:/sbin:/bin {SYSTEMD} --system --log-target=journal'
"""


class BootedHost(ClusterHost):
    """A host whose process 1 is systemd; ``disk`` is an empty directory."""

    def __init__(self, number: int, disk: Path) -> None:
        self._disk = disk
        self._group = f"weft-test-{os.getpid()}-{number}"
        super().__init__(number)

    def _switch_on(self, more: str, last: str, *unshared: str) -> None:
        mounts = _MOUNTS.format(etcd=more, disk=" ".join(_DISK), place=self._disk, wants=_WANTS, group=self._group,
                                root=ROOT, weft=_WEFT)  # fmt: skip
        super()._switch_on(mounts, _LAST, *unshared, "--uts", "--ipc")

    def _prepare(self) -> None:
        super()._prepare()
        until(lambda: self.systemctl("is-system-running").stdout.strip() == "running", _BOOT_SECONDS, "the boot")

    def command(self, *words: str) -> tuple[str, ...]:
        return (f"{_WEFT}/bin/weft", *words)

    def systemctl(self, *words: str) -> Outcome:
        """Run ``systemctl``, which may fail."""
        return self.run("systemctl", *words, check=False)

    def property(self, unit: str, name: str) -> str:
        """A property of a unit: systemctl(1), ``show``."""
        return self.systemctl("show", "--property", name, "--value", unit).stdout.strip()

    def etcd(self) -> int:
        return int(self.property("weft-etcd.service", "MainPID"))

    def reboot(self) -> None:
        """Let systemd end everything, and boot again."""
        self.systemctl("reboot")
        until(lambda: self._process.poll() is not None, _BOOT_SECONDS, f"the end of {self.name}")
        self.close()
        self._switch_on(self._etcd, "")

    def close(self) -> None:
        super().close()
        for folder in (Path(one, self._group) for one in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")):
            until(lambda folder=folder: _is_removed(folder), what=f"the end of the processes in {folder}")  # type: ignore[misc]


def _is_removed(group: Path) -> bool:
    """Whether a cgroup is gone: it can be removed once its processes have ended."""
    for each in sorted(group.glob("**"), reverse=True):
        with contextlib.suppress(OSError):
            each.rmdir()
    return not group.exists()
