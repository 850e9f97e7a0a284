"""What commands share: the service on this host's kernel, and the folders of network lists and plugins.

Everything is created here, so that tests can replace it.
"""

from __future__ import annotations

import contextlib
import gc
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
from weft.releases import supersede

if TYPE_CHECKING:
    from cni_plugin.service.verbs import Service
    from weft.kernel.linux.probe import Ability

PLUGIN_FOLDERS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")


def plugin_path() -> tuple[str, ...]:
    """The folders of foreign plugins: CNI_PATH, or the checkout's own and the usual ones."""
    folders = tuple(folder for folder in os.environ.get("CNI_PATH", "").split(":") if folder)
    return folders or (str(Path(__file__).resolve().parents[2] / "bin/cni"), *PLUGIN_FOLDERS)


def _service() -> Service:
    from cni_plugin.dataplane.tables import TABLES
    from cni_plugin.service import log
    from cni_plugin.service.verbs import Service
    from weft.kernel.host import Host
    from weft.kernel.linux.kernel import LinuxKernel

    kernel = LinuxKernel(TABLES)
    host = Host.current(kernel)
    supersede(host.run)
    is_debug = log.level(os.environ) is log.Level.DEBUG
    made = Service(kernel, host, log=log.write if is_debug else None)
    made.records.cache_all()
    # A process that ends soon and keeps what it reads: to look for cycles among that takes longer each time.
    gc.disable()
    return made


def _missing_privileges() -> str:
    from weft.kernel.linux import probe

    return " and ".join(one.name for one in probe.privileges() if one.problem)


def _abilities() -> tuple[Ability, ...]:
    from cni_plugin.dataplane.tables import TABLES
    from cni_plugin.networks import requirements
    from weft.kernel.linux import probe

    return probe.abilities(TABLES.text, requirements.trials())


def _empty_namespace() -> AbstractContextManager[str]:
    from weft.kernel.linux import probe

    return probe.empty_namespace()


class Tool:
    """The state of one command. ``config`` is the folder of network lists, ``path`` those of foreign
    plugins.
    """

    def __init__(
        self,
        *,
        config: str = "",
        path: tuple[str, ...] = (),
        make: Callable[[], Service] = _service,
        missing_privileges: Callable[[], str] = _missing_privileges,
        abilities: Callable[[], tuple[Ability, ...]] = _abilities,
        empty_namespace: Callable[[], AbstractContextManager[str]] = _empty_namespace,
    ) -> None:
        self.config = config or os.environ.get("WEFT_CNI_CONFIG") or conflists.FOLDER
        self.path = path or plugin_path()
        self.abilities = abilities
        self.empty_namespace = empty_namespace
        self._make = make
        self._missing_privileges = missing_privileges
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """The service on this host's kernel, created on first use."""
        if self._service is None:
            self._service = self._make()
        return self._service

    def close(self) -> None:
        if self._service is not None:
            self._service.kernel.close()

    def need_rights(self, what: str) -> None:
        """Raises NotPermitted without the privileges to change the network; ``what`` is a verb phrase."""
        if missing := self._missing_privileges():
            raise NotPermitted(f"permission denied: cannot {what} without {missing}", hint="run as root")

    def prepare_to(self, what: str) -> None:
        """Check privileges and create the folders of records, before any change. Raises NotPermitted."""
        self.need_rights(what)
        self.service.records.prepare()

    def need_records(self) -> None:
        """Raises NotPermitted where the records exist but are not readable."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.listdir(os.path.join(self.service.host.run, "attachments"))
            except PermissionError as error:
                raise NotPermitted("permission denied: cannot read weft's records", hint="run as root") from error

    def networks(self) -> list[NetworkList]:
        """Every network of the folder; invalid files are reported on standard error."""
        found, problems = conflists.listed(self.config)
        for problem in problems:
            warn(problem.message)
        return found

    def network(self, name: str) -> NetworkList:
        """The network of a name, an id, or an id's unique prefix. Raises UnknownNetwork."""
        return conflists.chosen(self.config, name)

    def network_name(self, word: str) -> str:
        """The name for a name or an id; the word itself where no file has such a network."""
        found = self.network_if_known(word) if word else None
        return found.name if found else word

    def network_if_known(self, name: str) -> NetworkList | None:
        with contextlib.suppress(conflists.UnknownNetwork):
            return conflists.chosen(self.config, name)
        return None


pass_tool = click.make_pass_decorator(Tool)
