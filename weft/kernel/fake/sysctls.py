"""The fake kernel's sysctls, of a namespace and of each link."""

from __future__ import annotations

from weft.errors import KernelRefused, Missing
from weft.kernel import sysctl
from weft.kernel.fake.links import CONF, GLOBAL, FakeState

_ALL = {"net/ipv6/conf": {"accept_dad": "0"}, "net/ipv4/conf": {}}
_AVAILABLE = {"net/ipv4/tcp_congestion_control": ("reno", "cubic")}


def fresh() -> dict[str, str]:
    """The sysctls of a new namespace, with ``conf/all`` and ``conf/default``."""
    values = dict(GLOBAL)
    for folder, settings in CONF.items():
        for name, value in settings.items():
            values[f"{folder}/default/{name}"] = value
            if folder in _ALL:  # neighbour tables have no "all"
                values[f"{folder}/all/{name}"] = _ALL[folder].get(name, value)
    return values


def of_new_link(values: dict[str, str]) -> dict[str, str]:
    """The sysctls of a new link, from ``conf/default``; keys have no link name."""
    return {f"{folder}/{name}": values[f"{folder}/default/{name}"] for folder in CONF for name in CONF[folder]}


def _locate(namespace: FakeState, key: str) -> tuple[dict[str, str], str]:
    """The dict that holds a key, and the key in it."""
    why = sysctl.problem(key)
    if why:
        raise KernelRefused(f"invalid sysctl {key!r}: it {why}")
    for folder in CONF:
        if key.startswith(f"{folder}/"):
            link, _, name = key.removeprefix(f"{folder}/").rpartition("/")
            if link in namespace.links_by_name:
                return namespace.links_by_name[link].sysctls, f"{folder}/{name}"
    return namespace.sysctls, key


def read(namespace: FakeState, key: str) -> str | None:
    values, name = _locate(namespace, key)
    return values.get(name)


def write(namespace: FakeState, key: str, value: str) -> None:
    values, name = _locate(namespace, key)
    if name not in values:
        raise Missing(f"cannot set the sysctl {key} to {value!r}: no such sysctl in this network namespace")
    if value.strip() not in _AVAILABLE.get(key, (value.strip(),)):
        hint = "this value is not available: the kernel module that provides it may be missing"
        raise KernelRefused(
            f"cannot set the sysctl {key} to {value!r}: the kernel says No such file or directory", hint=hint
        )
    if values[name].isdigit() and not value.strip().lstrip("-").isdigit():
        raise KernelRefused(f"cannot set the sysctl {key} to {value!r}: the kernel says Invalid argument")
    values[name] = value
    links = namespace.links_by_name.values()
    # The kernel copies these to all links (ip-sysctl.rst: ip_forward, conf/all/forwarding,
    # conf/all/disable_ipv6).
    if key in ("net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"):
        namespace.sysctls.update({f"net/ipv4/conf/{which}/forwarding": value for which in ("all", "default")})
        namespace.sysctls["net/ipv4/ip_forward"] = value
        for link in links:
            link.sysctls["net/ipv4/conf/forwarding"] = value
    for name in ("forwarding", "disable_ipv6"):
        if key == f"net/ipv6/conf/all/{name}":
            namespace.sysctls[f"net/ipv6/conf/default/{name}"] = value
            for link in links:
                link.sysctls[f"net/ipv6/conf/{name}"] = value
