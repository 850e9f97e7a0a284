"""Call CNI plugins as a runtime does: the executable, its environment, and JSON on stdin."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import engine
from lab.commands import Outcome, run

ROOT = Path(__file__).resolve().parents[2]
Config = Mapping[str, Any]

OWN_FOLDER = ROOT / "bin" / "cni"
REFERENCE_FOLDER = Path("/usr/lib/cni")


def chosen_folder() -> Path:
    """Directory of the plugins under test: weft's, or WEFT_TEST_PLUGINS (e.g. reference plugins)."""
    return Path(os.environ.get("WEFT_TEST_PLUGINS") or OWN_FOLDER)


class Cni:
    """Calls the plugins of one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environment(
        self, command: str, container: str = "c1", netns: str = "", ifname: str = "eth0", args: str = "", path: str = ""
    ) -> dict[str, str]:
        """The environment of a call: CNI_*, a minimal PATH, and WEFT_ENGINE=off unless wanted."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": path or str(self.folder),
            "WEFT_ENGINE": "require" if engine.for_programs() else os.environ.get("WEFT_ENGINE", "off"),
        }

    def __call__(
        self,
        command: str,
        conf: Config,
        container: str = "c1",
        netns: str = "",
        ifname: str = "eth0",
        plugin: str | None = None,
        args: str = "",
        *,
        path: str = "",
        extra: Mapping[str, str] | None = None,
        folder: str | None = None,
        timeout: float = 120,
    ) -> Outcome:
        """Call one plugin, by default the configuration's ``type``.

        A failure is returned, not raised.
        """
        if engine.for_programs() and self.folder == OWN_FOLDER:
            engine.ready()
        environment = self.environment(command, container, netns, ifname, args, path) | dict(extra or {})
        executable = str(self.folder / (plugin or conf["type"]))
        return run(
            executable, stdin=json.dumps(conf), environment=environment, check=False, timeout=timeout, folder=folder
        )

    def add(self, conf: Config, netns: str, **rest: Any) -> Any:
        """ADD that must succeed; the result."""
        outcome = self("ADD", conf, netns=netns, **rest)
        assert outcome.code == 0, outcome
        return outcome.json

    def check(self, conf: Config, result: Any, netns: str, **rest: Any) -> None:
        """CHECK that must succeed without output."""
        outcome = self("CHECK", {**conf, "prevResult": result}, netns=netns, **rest)
        assert (outcome.code, outcome.stdout) == (0, ""), outcome

    def delete(self, conf: Config, netns: str = "", **rest: Any) -> None:
        """DEL that must succeed without output."""
        outcome = self("DEL", conf, netns=netns, **rest)
        assert (outcome.code, outcome.stdout) == (0, ""), outcome

    def add_list(self, conflist: Config, netns: str, runtime: Config | None = None, **rest: Any) -> Any:
        """ADD of a conflist, as by a runtime: each plugin gets the result of the previous one."""
        result = None
        for conf in self._members(conflist, runtime):
            result = self.add(conf if result is None else {**conf, "prevResult": result}, netns, **rest)
        return result

    def check_list(self, conflist: Config, result: Any, netns: str, runtime: Config | None = None, **rest: Any) -> None:
        for conf in self._members(conflist, runtime):
            self.check(conf, result, netns, **rest)

    def delete_list(
        self, conflist: Config, result: Any = None, netns: str = "", runtime: Config | None = None, **rest: Any
    ) -> None:
        """DEL of a conflist, in reverse order, each plugin with the result of the ADD if given."""
        for conf in reversed(self._members(conflist, runtime)):
            self.delete(conf if result is None else {**conf, "prevResult": result}, netns, **rest)

    @staticmethod
    def _members(conflist: Config, runtime: Config | None) -> Sequence[dict[str, Any]]:
        """The plugin configurations of a conflist; ``runtime`` has the values for the capabilities."""
        members = []
        for plugin in conflist["plugins"]:
            declared = {name for name, wanted in plugin.get("capabilities", {}).items() if wanted}
            given = {name: value for name, value in (runtime or {}).items() if name in declared}
            member = {**plugin, "cniVersion": conflist["cniVersion"], "name": conflist["name"]}
            members.append({**member, "runtimeConfig": given} if given else member)
        return members
