"""The versions of the CNI specification that weft supports."""

from __future__ import annotations

from weft import __version__
from weft.errors import VersionProblem

ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = ALL[-1]
WHEN_ABSENT = ALL[0]
"""The version of a configuration that names none (SPEC.md, "Network configuration format")."""

# Of the reference plugins, which began with CNI itself but for these; told here and to shim.c since
# VERSION imports neither drivers nor features.
FIRST_OF_PLUGIN = {"bandwidth": "0.3.0", "vrf": "0.3.1", "firewall": "0.4.0"}
_FIRST_OF_COMMAND = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
EQUALLED = "1.9.1"
NETAVARK_INFO = f'{{"version": "{__version__}", "api_version": "1.0.0"}}'
"""What a driver plugin of netavark answers to ``info``."""


def supported(plugin: str) -> tuple[str, ...]:
    """The versions that weft supports when called by this name, oldest first."""
    return ALL[ALL.index(FIRST_OF_PLUGIN.get(plugin, WHEN_ABSENT)) :]


def at_least(version: str, least: str) -> bool:
    """Whether a supported version is another one or newer."""
    return ALL.index(version) >= ALL.index(least)


def require(version: str, command: str, plugin: str) -> None:
    """Raises VersionProblem unless the plugin speaks the version and the version knows the command."""
    known = supported(plugin)
    if version not in known:
        quoted = " ".join(f'"{each}"' for each in known)
        given = version if version.isprintable() and len(version) <= 40 else "unreadable"
        raise VersionProblem("incompatible CNI versions", hint=f'config is "{given}", plugin supports [{quoted}]')
    if not at_least(version, _FIRST_OF_COMMAND.get(command, WHEN_ABSENT)):
        raise VersionProblem(
            f"config version does not allow {command}",
            hint=f'config is "{version}", {command} needs "{_FIRST_OF_COMMAND[command]}" or later',
        )


def about(plugin: str) -> str:
    """The two lines that a call without CNI_COMMAND prints to standard error.

    The first must be exactly ``CNI NAME plugin vSEMVER``: nerdctl takes the rest of that line as a
    version, and Nomad the first word that is one; both refuse networks where ``bridge`` or ``firewall``
    seem too old. So under a reference plugin's name weft states the release that it equals, with its
    own as build data, which comparisons of semantic versions ignore.
    """
    version = __version__ if plugin == "weft" else f"{EQUALLED}+weft.{__version__}"
    return f"CNI {plugin} plugin v{version}\nCNI protocol versions supported: {', '.join(supported(plugin))}\n"
