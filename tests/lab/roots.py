"""Root file systems of other Debian releases, with weft in them: layers of an overlay for ``Machine``.

A root is made by mmdebstrap from this machine's own mirror, and kept in the cache of ``bin/vm``, like the
libraries for its Python. Both are built in a temporary directory under a lock, and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.commands import Outcome, run
from lab.guest.image import alone, cache
from lab.plugins import ROOT

PLACE = "/opt/weft"
"""Where weft is in a root, as a checkout would be."""
_COMMON = (
    "busybox-static", "ca-certificates", "conmon", "crun", "curl", "iproute2", "iptables", "iputils-ping", "kmod",
    "libnftables1", "nftables", "podman", "procps", "python3", "python3-venv",
)  # fmt: skip
# What weft's Debian package depends on, ping, and what builds the package.
_BARE = ("iproute2", "iputils-ping", "libnftables1", "netbase", "nftables", "python3", "python3-venv")
# What the machine's apt needs to reach its mirror.
_OF_APT = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIP")
_OVERLAY = """
mount -t tmpfs tmpfs /run
mkdir /run/root
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" /run/root
mount -t proc proc /run/root/proc
mount --rbind /dev /run/root/dev
shift 3
exec chroot /run/root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
"""
_INSTALL = """
import sys
sys.path.insert(0, ".")
from cni_plugin.entry import installation
place, libraries = sys.argv[1:]
here = installation.Installation(f"{place}/.venv/bin/python", place, (libraries,), f"{place}/.venv/bin")
installation.make(f"{place}/bin/cni", here, installation.compiled_client(), replace=True)
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A Debian release, by its name in the archive, and the packages that are installed in it."""

    suite: str
    packages: tuple[str, ...]


RECIPES = {
    "bare-bookworm": Recipe("bookworm", _BARE),
    "bare-trixie": Recipe("trixie", _BARE),
    "trixie": Recipe("trixie", (*_COMMON, "aardvark-dns", "netavark")),
    "docker": Recipe(
        "trixie",
        (
            "busybox-static",
            "ca-certificates",
            "docker-cli",
            "docker.io",
            "iproute2",
            "iptables",
            "iputils-ping",
            "kmod",
            "libnftables1",
            "nftables",
            "procps",
            "python3",
            "python3-venv",
        ),
    ),
    # Optional: the newest nftables, which changes what and how it prints, before Debian releases it.
    "sid": Recipe(
        "sid",
        (
            *_COMMON,
            "aardvark-dns",
            "busybox-static",
            "dnsmasq-base",
            "netavark",
            "nginx",
            "python3-dnspython",
            "python3-hypothesis",
            "python3-pytest",
            "strace",
        ),
    ),
}
"""The roots, by name. To add one, add a row: it is built when it is first used."""


def layers(name: str, folder: Path) -> tuple[Path, ...]:
    """The layers of a root with this checkout of weft installed in it, the topmost first.

    ``folder`` is an empty directory for the topmost one; the others are cached.
    """
    below = _libraries(name), root(name)
    top = folder / "top"
    place = top / PLACE[1:]
    place.mkdir(parents=True)
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    for each in (*packages, "bin", "conf"):
        shutil.copytree(ROOT / each, place / each, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "cni"))
    _inside(below, top, "python3", "-I", "-m", "compileall", "-q", "-j0", *(f"{PLACE}/{each}" for each in packages))
    _inside(below, top, "sh", "-c", f'cd {PLACE} && exec .venv/bin/python -I -c "$@"', "sh", _INSTALL, PLACE,
            f"{PLACE}/{_site(_version(below[1]))}")  # fmt: skip
    return (top, *below)


def root(name: str) -> Path:
    """A root without weft, built on first use: some minutes, 350 MB."""
    recipe = RECIPES[name]

    def build(folder: Path) -> None:
        options = [line for line in run("apt-config", "dump").stdout.splitlines() if line.startswith(_OF_APT)]
        options.append('APT::Install-Recommends "false";')
        run(
            "mmdebstrap", "--variant=minbase", "--mode=root", "--components=main", "--quiet",
            *(f"--aptopt={option}" for option in options), f"--include={','.join(recipe.packages)}",
            recipe.suite, str(folder), _mirror(), timeout=1500,
        )  # fmt: skip
        # mmdebstrap copies this machine's.
        (folder / "etc" / "resolv.conf").write_text("")

    return _cached(f"{name}-{_key(recipe)}", build)


def is_built(name: str) -> bool:
    """Whether the root is in the cache."""
    return (cache() / f"{name}-{_key(RECIPES[name])}").is_dir()


def build_package(name: str, folder: Path, *revisions: str) -> list[Path]:
    """weft's Debian packages for a release, built on it, in ``folder``: one for each of ``revisions``.

    On another release than this machine's ``bin/package`` runs in a root without a network, with wheels that
    this machine's pip has fetched.
    """
    below = root(name)
    if RECIPES[name].suite == _codename():
        for revision in revisions:
            run(str(ROOT / "bin/package"), "--output", str(folder), "--revision", revision, timeout=600)
        return sorted(folder.glob("weft_*.deb"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        top = Path(work, "top")
        place = top / PLACE[1:]
        ignored = shutil.ignore_patterns("__pycache__", "cni", ".*", "build", "dist", "tests")
        shutil.copytree(ROOT, place, symlinks=True, ignore=ignored)
        _pip("download", _version(below), f"--dest={place / 'wheels'}")
        script = f"""
            export PIP_NO_INDEX=1 PIP_FIND_LINKS={PLACE}/wheels
            for revision; do {PLACE}/bin/package --output {PLACE}/dist --revision $revision; done
        """
        _inside((below,), top, "sh", "-euc", script, "sh", *revisions)
        for path in (place / "dist").glob("weft_*.deb"):
            shutil.move(path, folder)
    return sorted(folder.glob("weft_*.deb"))


def _libraries(name: str) -> Path:
    """The layer with weft's virtual environment for the Python of a root, fetched by this machine's
    pip.
    """
    below = root(name)
    version = _version(below)
    constraints = ROOT / "constraints.txt"

    def build(folder: Path) -> None:
        _inside((below,), folder, "python3", "-I", "-m", "venv", "--without-pip", f"{PLACE}/.venv")
        target = folder / PLACE[1:] / _site(version)
        _pip("install", version, "--no-compile", f"--target={target}")
        _inside((below,), folder, "python3", "-I", "-m", "compileall", "-q", "-j0", f"{PLACE}/.venv/lib")

    key = _key(below.name, version, constraints.read_text(), _wanted())
    return _cached(f"libraries-{name}-{key}", build)


def _pip(command: str, version: str, *options: str) -> None:
    """Let this machine's pip fetch weft's libraries for another version of Python."""
    # The oldest C library of the wheels comes last: pip prefers what is named first.
    platforms = [f"--platform={libc}_{os.uname().machine}" for libc in ("manylinux_2_28", "manylinux2014")]
    run(
        sys.executable, "-I", "-m", "pip", command, "--quiet", "--no-input", "--disable-pip-version-check",
        "--only-binary=:all:", f"--python-version={version}", *platforms,
        f"--constraint={ROOT / 'constraints.txt'}", *options, *_wanted(), timeout=600,
    )  # fmt: skip


def _wanted() -> list[str]:
    """The requirements of weft, of its agent and of a cluster, from pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    more = project["optional-dependencies"]
    return [*project["dependencies"], *more["agent"], *more["cluster"]]


def _version(below: Path) -> str:
    """The version of a root's Python, as 3.13."""
    return os.readlink(below / "usr/bin/python3").removeprefix("python")


def _site(version: str) -> str:
    return f".venv/lib/python{version}/site-packages"


def _key(*parts: object) -> str:
    return hashlib.sha256(repr((os.uname().machine, *parts)).encode()).hexdigest()[:12]


def _codename() -> str:
    """The name of this machine's release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def _mirror() -> str:
    """The mirror that this machine's own packages come from."""
    codename = _codename()
    wanted = ("Created-By: Packages", f"Release: {codename}", "Component: main")
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).stdout.split()
    assert found, f"apt has no mirror for {codename}: /etc/apt/sources.list.d names none"
    return found[0]


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    """A directory of the cache, built unless it is there."""
    folder = cache()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    kept = folder / name
    with alone(folder / f"lock-{name.split('-')[0]}"):
        if not kept.is_dir():
            work = Path(tempfile.mkdtemp(dir=folder, prefix="new-"))
            try:
                made = work / "made"
                made.mkdir(mode=0o755)
                build(made)
                made.rename(kept)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return kept


def start(below: Sequence[Path], top: Path, work: Path, *argv: str) -> subprocess.Popen[bytes]:
    """Start a command in a root; what it writes is in ``top``. ``work`` is an empty directory beside it."""
    return subprocess.Popen(_command(below, top, work, argv))


def _command(below: Sequence[Path], top: Path, work: Path, argv: Sequence[str]) -> tuple[str, ...]:
    script = ("sh", "-euc", _OVERLAY, "sh", ":".join(map(str, below)), str(top), str(work), *argv)
    return ("unshare", "--mount", "--propagation", "private", "--", *script)


def _inside(below: Sequence[Path], top: Path, *argv: str) -> Outcome:
    """Run a command in a root; what it writes is in ``top``."""
    work = Path(tempfile.mkdtemp(dir=top.parent))
    try:
        return run(*_command(below, top, work, argv), timeout=300)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(work)
