"""What every command starts from: the service on this host's kernel, and where network lists and plugins are.

The one place where they are made, so that a test can put others in their stead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cni_plugin.cli.output import warn
from cni_plugin.networks import conflists
from cni_plugin.networks.conflists import NetworkList
from weft.errors import NotPermitted

if TYPE_CHECKING:
    from cni_plugin.service.verbs import Service
    from weft.kernel.linux.probe import Ability

PLUGIN_FOLDERS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")


def plugin_path() -> tuple[str, ...]:
    """Where foreign plugins are looked for: CNI_PATH, or the checkout's own folder and the usual ones."""
    given = tuple(part for part in os.environ.get("CNI_PATH", "").split(":") if part)
    return given or (str(Path(__file__).resolve().parents[2] / "bin/cni"), *PLUGIN_FOLDERS)


def _service() -> Service:
    from cni_plugin.dataplane.tables import TABLES
    from cni_plugin.service.verbs import Service
    from weft.kernel.host import Host
    from weft.kernel.linux.kernel import LinuxKernel

    kernel = LinuxKernel(TABLES)
    return Service(kernel, Host.current(kernel))


def _lacking_rights() -> str:
    from weft.kernel.linux import probe

    return " and ".join(one.name for one in probe.privileges() if one.problem)


def _abilities() -> tuple[Ability, ...]:
    from cni_plugin.dataplane.tables import TABLES
    from cni_plugin.networks import findings
    from weft.kernel.linux import probe

    return probe.abilities(TABLES.text, findings.trials())


def _empty_namespace() -> AbstractContextManager[str]:
    from weft.kernel.linux import probe

    return probe.empty_namespace()


class Tool:
    """One run of the command. ``config`` is the folder of network lists, ``path`` that of foreign plugins."""

    def __init__(
        self,
        *,
        config: str = "",
        path: tuple[str, ...] = (),
        make: Callable[[], Service] = _service,
        lacking_rights: Callable[[], str] = _lacking_rights,
        abilities: Callable[[], tuple[Ability, ...]] = _abilities,
        empty_namespace: Callable[[], AbstractContextManager[str]] = _empty_namespace,
    ) -> None:
        self.config = config or os.environ.get("WEFT_CNI_CONFIG") or conflists.FOLDER
        self.path = path or plugin_path()
        self.abilities = abilities
        self.empty_namespace = empty_namespace
        self._make = make
        self._lacking_rights = lacking_rights
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """The service on this host's kernel, made when first asked for."""
        if self._service is None:
            self._service = self._make()
        return self._service

    def close(self) -> None:
        if self._service is not None:
            self._service.kernel.close()

    def need_rights(self, what: str) -> None:
        """Raises NotPermitted where this process may not do what changes the network."""
        if lacking := self._lacking_rights():
            raise NotPermitted(f"cannot {what}: this process lacks {lacking}", hint="run it as root")

    def prepare_to(self, what: str) -> None:
        """What every command that changes something starts with. Raises NotPermitted."""
        self.need_rights(what)
        self.service.records.prepare()

    def need_records(self) -> None:
        """Raises NotPermitted where the records are there but this process may not read them."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.listdir(os.path.join(self.service.host.run, "attachments"))
            except PermissionError as error:
                raise NotPermitted("cannot read weft's records", hint="run it as root") from error

    def networks(self) -> list[NetworkList]:
        """Every network of the folder; what cannot be read is said on standard error."""
        found, problems = conflists.listed(self.config)
        for problem in problems:
            warn(problem.message)
        return found

    def network(self, name: str) -> NetworkList:
        """Raises UnknownNetwork."""
        return conflists.find(self.config, name)

    def network_if_known(self, name: str) -> NetworkList | None:
        with contextlib.suppress(conflists.UnknownNetwork):
            return conflists.find(self.config, name)
        return None


pass_tool = click.make_pass_decorator(Tool)
