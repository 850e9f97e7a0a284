"""Podman's networks of driver ``overlay``: they are the cluster's, and podman's file only names them."""

from __future__ import annotations

import contextlib

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks import clustered, conflists, podman, requests
from cni_plugin.networks.create import CreateOptions
from weft.errors import Conflict
from weft.kernel.linux.kernel import LinuxKernel
from weft.section import Section

Json = dict[str, object]


def create(section: Section, value: Json, options: dict[str, str], *, names: bool) -> Json:
    """Create a network on all hosts of the cluster; what podman is to remember. Raises WeftError."""
    subnets = section.sections("subnets")
    requested = CreateOptions(
        "overlay",
        tuple(one.text("subnet") for one in subnets),
        tuple(gateway for one in subnets if (gateway := one.text("gateway"))),
        (),
        section.flag("ipv6_enabled"),
        section.flag("internal"),
        names,
        options,
        _texts(section.raw("labels")),
    )
    section.problems.raise_any()
    kernel = LinuxKernel(TABLES)
    try:
        with contextlib.closing(requests.client()) as connection:
            others = podman.subnets_in_use()
            content, problem = requests.create(
                connection,
                section.text("name"),
                requested,
                lambda: conflists.listed(conflists.FOLDER)[0],
                kernel.host,
                others,
                section.text("id"),
            )
            if problem:
                requests.remove(connection, section.text("name"), force=False)
                raise Conflict(f"this host cannot take part in network {section.text('name')}: {problem}")
    finally:
        kernel.close()
    made = clustered.podman_file(clustered.network_of(content, section.text("id")))
    kept: Json = {key: value[key] for key in ("created", "options", "labels") if key in value}
    return {**made, **kept}


def _texts(value: object) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def config(name: str, version: str) -> Json:
    """The CNI configuration of a network, as the agent has written it on this host. Raises UnknownNetwork."""
    found = conflists.find(conflists.FOLDER, name)
    plugin = {key: item for key, item in found.plugins[0].items() if key != "capabilities"}
    return {**plugin, "cniVersion": version, "name": name}
