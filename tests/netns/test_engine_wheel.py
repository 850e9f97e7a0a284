"""The wheel as pip builds and installs it is complete, and ``weft install`` works from it."""

from __future__ import annotations

import os
import shutil
import sysconfig
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.commands import run
from lab.host import Host
from lab.plugins import ROOT, Cni

PACKAGES = ("weft", "cni_plugin", "ipam", "store", "discovery", "cluster")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
PYTHON = str(ROOT / ".venv" / "bin" / "python")
PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
CONF: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "packed",
    "type": "bridge",
    "bridge": "br-packed",
    "isGateway": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.73.0.0/24"}]]},
}


@dataclass(frozen=True, slots=True)
class Installed:
    """A wheel, and the virtual environment that it is installed in."""

    wheel: Path
    environment: Path
    compiled: bool

    def weft(self, *arguments: str, check: bool = True) -> Any:
        return run(str(self.environment / "bin" / "weft"), *arguments, environment=PATH, check=check)


@pytest.fixture(scope="module", params=["compiled", "without a compiler"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    compiled = request.param == "compiled"
    if compiled and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler is installed")
    place = tmp_path_factory.mktemp("package")
    source, wheels, environment = place / "source", place / "wheels", place / "environment"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "client"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "conf", source / "conf")
    pip = (PYTHON, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels))
    run(*pip, "wheel", str(source), *options, environment=PATH | ({} if compiled else {"CC": "none"}), timeout=300)
    (wheel,) = wheels.iterdir()
    run(PYTHON, "-I", "-m", "venv", "--without-pip", str(environment), timeout=120)
    python = str(environment / "bin" / "python")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel), environment=PATH, timeout=120)
    # The wheel does not contain weft's dependencies: those of the checkout are used, without the extras'.
    libraries = place / "libraries"
    libraries.mkdir()
    for name in ("click", "netaddr", "pyroute2", "yaml"):
        (libraries / name).symlink_to(Path(sysconfig.get_path("purelib"), name))
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    return Installed(wheel, environment, compiled)


def test_the_wheel_is_whole(installed: Installed) -> None:
    packed = set(zipfile.ZipFile(installed.wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {name for name in packed if name.endswith(".py")} == sources
    assert ("cni_plugin/entry/client" in packed) is installed.compiled
    assert {"cni_plugin/entry/conf/systemd/weft-agent.service", "cni_plugin/entry/conf/weft.toml"} <= packed
    kind = f"linux_{os.uname().machine}" if installed.compiled else "any"
    assert installed.wheel.name.endswith(f"-py3-none-{kind}.whl")


def test_what_is_installed_serves_a_runtime(host: Host, installed: Installed, tmp_path: Path) -> None:
    folder = tmp_path / "opt cni bin"
    said = installed.weft("install", str(folder)).stdout
    assert ("without a C compiler" in said) is not installed.compiled
    assert (folder / "weft").read_bytes().startswith(b"\x7fELF" if installed.compiled else b"#!")
    cni, path = Cni(folder), host.container()
    version = cni("VERSION", {"cniVersion": "1.0.0"}, plugin="ptp")
    assert (version.code, version.json["cniVersion"]) == (0, "1.0.0"), version
    result = cni.add(CONF, path)
    assert result["ips"][0]["address"] == "10.73.0.2/24"
    cni.check(CONF, result, path)
    cni.delete(CONF, path)
    # The first call starts an engine of the same installation.
    cni.add(CONF, path, extra={"WEFT_ENGINE": "auto", "WEFT_ENGINE_IDLE": "60"})
    deadline = time.monotonic() + 60
    while (status := installed.weft("engine", "status", "--json", check=False)).code:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    command = Path(f"/proc/{status.json['pid']}/cmdline").read_text()
    assert str(installed.environment) in command, command
    cni.delete(CONF, path, extra={"WEFT_ENGINE": "require"})
    installed.weft("engine", "stop")
    assert installed.weft("engine", "status", check=False).code == 1


def test_documents_and_units_are_inside(installed: Installed, tmp_path: Path) -> None:
    installed.weft("install", "--share", str(tmp_path))
    assert "weft network create" in (tmp_path / "man/man1/weft-network.1").read_text().replace("\\-", "-")
    assert "_WEFT_COMPLETE" in (tmp_path / "bash-completion/completions/weft").read_text()
    assert (tmp_path / "doc/weft/examples/weft.toml").is_file()
    said = installed.weft("uninstall", str(tmp_path)).stdout
    assert f"weft itself is in {installed.environment}/lib" in said and "-m pip uninstall weft" in said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("command", ["up", "agent", "docker"])
def test_without_the_extra_a_sentence_says_what_is_missing(host: Host, installed: Installed, command: str) -> None:
    found = installed.weft(command, check=False)
    assert found.code == 1 and "Traceback" not in found.stderr, found
    assert "needs the library aiohttp, which is not installed\n" in found.stderr
    assert "hint: pip install aiohttp beside weft" in found.stderr


def test_foreign_plugins_are_replaced_only_with_the_option(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("theirs")
    (tmp_path / "flannel").write_text("theirs")
    refused = installed.weft("install", str(tmp_path), check=False)
    assert (refused.code, "bridge" in refused.stderr, "flannel" in refused.stderr) == (4, True, False), refused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bridge", "flannel"]
    for _ in range(2):
        installed.weft("install", str(tmp_path), "--replace")
    assert (tmp_path / "bridge").readlink() == Path("weft")
    assert (tmp_path / "flannel").read_text() == "theirs"
    assert not list(tmp_path.glob("*.new"))
