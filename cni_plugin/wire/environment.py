"""The CNI_* variables of a call: which are required, and what values they may have.

Source: SPEC.md, "Parameters". CNI_PATH may be absent, as the specification has it: a foreign plugin
that is then not found says so itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cni_plugin.wire.plugins import IPAM
from cni_plugin.wire.request import Command, Config, Request
from weft.errors import EnvironmentProblem
from weft.identity import identifier_problem, link_name_problem
from weft.section import quoted

_REQUIRED = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_LONGEST_PATH = 4095  # PATH_MAX without its zero byte
_KNOWN = frozenset({"IgnoreUnknown", "IP", "MAC", "GATEWAY"})


@dataclass(frozen=True, slots=True)
class Environment:
    """What the variables say; the fields are as in ``Request``."""

    command: Command
    container: str
    namespace: str
    interface: str
    path: tuple[str, ...]
    arguments: Mapping[str, str]
    override: bool

    def request(self, plugin: str, environ: Mapping[str, str], config: Config, stdin: bytes) -> Request:
        """The call as a whole, with the configuration that was read from ``stdin``."""
        return Request(
            command=self.command,
            plugin=plugin,
            container=self.container,
            namespace=self.namespace,
            interface=self.interface,
            path=self.path,
            arguments=self.arguments,
            override=self.override,
            environment=environ,
            config=config,
            stdin=stdin,
        )


def read(environ: Mapping[str, str], plugin: str, reads_arguments: Callable[[str], bool]) -> Environment:
    """What the environment asks for; raises EnvironmentProblem for the first variable that is wrong or
    missing.

    ``reads_arguments`` tells whether the plugin reads CNI_ARGS: those that look at none of it accept
    anything there, as theirs do. DEL ignores what it cannot read in CNI_ARGS: the ADD that had the same
    has failed, and must be cleaned up after.
    """
    command = _command(environ.get("CNI_COMMAND", ""))
    path = tuple(part for part in environ.get("CNI_PATH", "").split(":") if part)
    if command not in _REQUIRED:
        return Environment(command, "", "", "", path, {}, False)
    container, namespace, interface = (environ.get(f"CNI_{key}", "") for key in ("CONTAINERID", "NETNS", "IFNAME"))
    for name, value, problem in (
        ("CNI_CONTAINERID", container, identifier_problem),
        ("CNI_NETNS", namespace, _text_problem if plugin in IPAM else _path_problem),
        ("CNI_IFNAME", interface, link_name_problem),
    ):
        if value and (sentence := problem(value)):
            raise EnvironmentProblem(f"{name} {quoted(value)} {sentence}", hint="the container runtime sets it")
    missing = [name for name in _REQUIRED[command] if not environ.get(name)]
    if missing:
        raise EnvironmentProblem(f"required env variables [{','.join(missing)}] missing")
    text = environ.get("CNI_ARGS", "")
    if text and command is not Command.DEL and reads_arguments(plugin):
        _check_arguments(text)
    override = environ.get("CNI_NETNS_OVERRIDE", "").casefold() in ("1", "true")
    return Environment(command, container, namespace, interface, path, _arguments(text), override)


def _command(text: str) -> Command:
    try:
        return Command(text)
    except ValueError:
        listed = ", ".join(Command)
        raise EnvironmentProblem(f"unknown CNI_COMMAND: {quoted(text)}", hint=f"weft knows {listed}") from None


def _path_problem(path: str) -> str:
    """What is wrong with a namespace's path, "" if nothing is; whether anything is there is not looked
    at.
    """
    return _text_problem(path) if path.startswith("/") else "must be an absolute path"


def _text_problem(path: str) -> str:
    """What is wrong with CNI_NETNS where nothing opens it, "" if nothing is: virtual machines have other
    names than paths.
    """
    if not path.isprintable():
        return "must be printable UTF-8"
    if len(path.encode("utf-8")) > _LONGEST_PATH:
        return f"must not be longer than {_LONGEST_PATH} bytes"
    return ""


def _arguments(text: str) -> dict[str, str]:
    """``KEY=VALUE;KEY=VALUE``, leaving out what is not so; of a key given twice the last counts."""
    pairs = (part.split("=") for part in text.split(";"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _check_arguments(text: str) -> None:
    """Raises EnvironmentProblem for CNI_ARGS that the reference plugins refuse."""
    if not text.isprintable():
        raise EnvironmentProblem(f"CNI_ARGS {quoted(text)} must be printable UTF-8")
    for part in text.split(";"):
        if part.count("=") != 1:
            raise EnvironmentProblem(
                f"ARGS: invalid pair {quoted(part)}", hint="CNI_ARGS must be KEY=VALUE pairs with ; between them"
            )
    arguments = _arguments(text)
    lenient = arguments.get("IgnoreUnknown", "false").casefold()
    if lenient not in ("0", "1", "true", "false"):
        raise EnvironmentProblem(f"ARGS: IgnoreUnknown {quoted(lenient)} must be one of 0, 1, true, false")
    unknown = [f"{key}={value}" for key, value in arguments.items() if key not in _KNOWN]
    if unknown and lenient in ("0", "false"):
        raise EnvironmentProblem(
            f"ARGS: unknown args [{' '.join(quoted(each) for each in unknown)}]",
            hint="IgnoreUnknown=1 in CNI_ARGS lets them pass",
        )
