"""The command on a fake kernel; networks, leases and state are in a directory of the test."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from cni_plugin.cli.root import weft
from cni_plugin.cli.tool import Tool
from cni_plugin.service.verbs import Service
from ipam import host_local_config
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.linux.probe import Ability


@dataclass
class Said:
    """Exit status and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@dataclass
class Weft:
    """Runs the command; tests may inspect and break the kernel and the files it uses."""

    folder: Path
    kernel: FakeKernel
    service: Service
    missing_privileges: str = ""
    abilities: tuple[Ability, ...] = ()
    made: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "net.d"

    def __call__(self, *arguments: str, typed: str | None = None) -> Said:
        tool = Tool(
            config=str(self.config),
            path=(str(self.folder / "plugins"),),
            make=lambda: self.service,
            missing_privileges=lambda: self.missing_privileges,
            abilities=lambda: self.abilities,
            empty_namespace=self._empty,
        )
        result = CliRunner().invoke(weft, list(arguments), obj=tool, input=typed)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    def good(self, *arguments: str) -> str:
        """The output of a command that must succeed without a message on stderr."""
        said = self(*arguments)
        assert (said.code, said.err) == (0, ""), said
        return said.out

    def container(self, name: str) -> str:
        """Create a network namespace of that name."""
        path = f"/run/netns/{name}"
        self.kernel.add(path)
        return path

    def list(self, name: str) -> dict:
        return json.loads((self.config / f"{name}.conflist").read_text())

    @contextlib.contextmanager
    def _empty(self) -> Iterator[str]:
        path = "/proc/1/task/1/ns/net"
        self.kernel.add(path)
        try:
            yield path
        finally:
            self.kernel.remove(path)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weft:
    monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(tmp_path / "leases"))
    monkeypatch.delenv("WEFT_CNI_CONFIG", raising=False)
    monkeypatch.delenv("WEFT_DEBUG", raising=False)
    kernel = FakeKernel()
    service = Service(kernel, Host(str(tmp_path / "run"), "this-boot", time.time() - 3600))
    return Weft(tmp_path, kernel, service)
