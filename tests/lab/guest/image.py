"""Debian's kernel package with all features: downloaded and unpacked, never installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "linux-image-amd64"
"""The generic flavour: the cloud flavour has no 9p."""
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
"""Modules that are needed to mount the machine's files."""
HERE = Path(__file__).parent


class NoGuest(Exception):
    """No virtual machine is available; the message says why."""


@dataclass(frozen=True, slots=True)
class Image:
    """A bootable kernel. ``modules`` is the directory for /lib/modules in the guest."""

    version: str
    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "boot" / f"vmlinuz-{self.version}"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def modules(self) -> Path:
        return self.folder / "lib" / "modules"


def cache() -> Path:
    """Directory of kernels: $WEFT_CACHE, else /var/cache/weft for root, else the user's cache."""
    if chosen := os.environ.get("WEFT_CACHE"):
        return Path(chosen).resolve()
    if os.geteuid() == 0:
        return Path("/var/cache/weft")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft"


def image() -> Image:
    """The kernel, downloaded on first use. Raises NoGuest if that fails."""
    if (machine := os.uname().machine) != "x86_64":
        raise NoGuest(f"the virtual machine is for x86_64, this is {machine}")
    folder = cache()
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise NoGuest(f"no place to keep a kernel: {error}") from error
    with alone(folder / "lock"):
        found = _kept(folder)
        if found is None:
            found = _fetch(folder)
        _make_initrd(found)
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file, creating it if necessary."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept(folder: Path) -> Image | None:
    images = [Image(path.name.removeprefix("linux-"), path) for path in folder.glob("linux-*")]
    whole = [item for item in images if item.kernel.is_file() and item.modules.is_dir()]
    return max(whole, key=lambda item: item.folder.stat().st_mtime_ns, default=None)


def _fetch(folder: Path) -> Image:
    """Download and unpack into a temporary directory, then rename it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as name:
        work = Path(name)
        try:
            package = _newest()
            # As root, apt would switch to a user without write permission here, and warn.
            _call("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, folder=work, timeout=600)
        except NoGuest:
            _call("apt-get", "-q", "update", folder=work, timeout=300)
            package = _newest()
            _call("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, folder=work, timeout=600)
        archive = next(work.glob("*.deb"))
        made = work / "made"
        _call("dpkg", "-x", str(archive), str(made), folder=work, timeout=300)
        # A package from before usrmerge has /lib, later ones /usr/lib.
        if not (made / "lib").exists():
            (made / "lib").symlink_to("usr/lib")
        version = package.removeprefix("linux-image-")
        _call("depmod", "-b", str(made), version, folder=work, timeout=120)
        kept = folder / f"linux-{version}"
        shutil.rmtree(kept, ignore_errors=True)
        made.rename(kept)
    return Image(version, kept)


def _newest() -> str:
    """The name of the package of the newest kernel."""
    said = _call("apt-cache", "depends", PACKAGE, folder=Path("/"), timeout=60)
    for line in said.splitlines():
        word, _, name = line.strip().partition(" ")
        if word == "Depends:" and name.startswith("linux-image-"):
            return name
    raise NoGuest(f"apt knows no {PACKAGE}")


def _make_initrd(item: Image) -> None:
    """An initramfs that mounts the machine's root: busybox, a script, and modules in loading order."""
    script = HERE / "first.sh"
    if item.initrd.exists() and item.initrd.stat().st_mtime_ns > script.stat().st_mtime_ns:
        return
    busybox = shutil.which("busybox")
    if busybox is None:
        raise NoGuest("busybox is missing: bin/setup --vm installs it")
    with tempfile.TemporaryDirectory(dir=item.folder, prefix="initrd-") as name:
        root = Path(name) / "root"
        for folder in ("bin", "modules", "dev", "proc", "sys", "root", "lower", "upper"):
            (root / folder).mkdir(parents=True)
        shutil.copy(busybox, root / "bin" / "busybox")
        shutil.copy(script, root / "init")
        (root / "init").chmod(0o755)
        order = [path for module in BOOT_MODULES for path in _with_what_it_needs(item, module)]
        for path in dict.fromkeys(order):
            shutil.copy(path, root / "modules" / path.name)
        (root / "modules" / "order").write_text("".join(f"{path.name}\n" for path in dict.fromkeys(order)))
        files = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        archive = Path(name) / "initrd"
        with archive.open("wb") as file:
            command = ("cpio", "--quiet", "--create", "--format=newc", "--owner=0:0")
            subprocess.run(command, input=files.encode(), stdout=file, cwd=root, check=True, timeout=60)
        archive.rename(item.initrd)


def _with_what_it_needs(item: Image, module: str) -> list[Path]:
    said = _call(
        "modprobe", "-d", str(item.folder), "-S", item.version, "--show-depends", module, folder=Path("/"), timeout=60
    )
    return [Path(line.split()[1]) for line in said.splitlines() if line.startswith("insmod ")]


def _call(*command: str, folder: Path, timeout: float) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    environment["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGuest(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise NoGuest(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
