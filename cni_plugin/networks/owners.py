"""How the owners of containers call them: Docker, podman, nerdctl, ctr, Kubernetes, and ``ip netns``.

A record has the id that a runtime passes to CNI. The names are in files that the runtimes keep; each
source below reads one kind of them. A file that is missing or cannot be read has no names.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from weft import files

LIBCNI_RESULTS = "/var/lib/cni/results"
PODMAN_CONTAINERS = (
    "/var/lib/containers/storage/*-containers/containers.json",
    "/var/lib/containers/storage/*-containers/volatile-containers.json",
    "/run/containers/storage/*-containers/volatile-containers.json",
)
DOCKER_ENDPOINTS = "/var/lib/weft/docker/endpoints"
"""What weft's driver for Docker keeps."""
NERDCTL_NAMES = "/var/lib/nerdctl/*/names/*/*"
CONTAINERD_TASKS = "/run/containerd/io.containerd.runtime.v2.task/*"
_CONTAINERD_NAMESPACES = ("default", "k8s.io", "moby", "buildkit")
"""Those that are usual, for containers that have ended."""
_BY_HAND = "weft-"
_PROC = re.compile(r"/proc/(\d+)/ns/net")
_SHORT, _LONG = 12, 13
_IS_HEX = re.compile("[0-9a-f]+").fullmatch
_MOST_BYTES = 64 << 20
_MOST_BYTES_OF_NAME = 1 << 10


@dataclass(frozen=True, slots=True)
class OwnerName:
    """``name`` is what ``weft ps`` shows; ``others`` are further words for the container. ``container`` is the
    owner's id of it, where the container has an id of its own on each network.
    """

    name: str
    others: tuple[str, ...] = ()
    container: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name, *self.others, *filter(None, (self.container,)))


Source = Callable[[frozenset[str]], Iterator[tuple[str, OwnerName]]]
"""Gives names to some of the ids of containers."""


def container_of(netns: str) -> str:
    """The container id for a namespace that no runtime has created, of its name, path or process id."""
    found = _PROC.fullmatch(netns)
    text = found.group(1) if found else netns.rstrip("/").rpartition("/")[2]
    return _BY_HAND + re.sub(r"[^a-zA-Z0-9_.\-]", "-", text)


def by_hand(ids: frozenset[str]) -> Iterator[tuple[str, OwnerName]]:
    """``weft attach`` makes the id of a namespace's name."""
    for one in ids:
        if one.startswith(_BY_HAND):
            yield one, OwnerName(one.removeprefix(_BY_HAND))


def of_containerd(ids: frozenset[str]) -> Iterator[tuple[str, OwnerName]]:
    """ctr and nerdctl pass NAMESPACE-ID; with ctr, the id is the name that its user has chosen."""
    namespaces = {*_CONTAINERD_NAMESPACES, *(os.path.basename(path) for path in glob.glob(CONTAINERD_TASKS))}
    for one in ids:
        for namespace in sorted(namespaces, key=len, reverse=True):
            if one.startswith(f"{namespace}-"):
                yield one, OwnerName(one.removeprefix(f"{namespace}-"))
                break


def of_nerdctl(ids: frozenset[str]) -> Iterator[tuple[str, OwnerName]]:
    """A file for each name, with the container's id. Source: nerdctl's ``namestore.go``."""
    for path in glob.glob(NERDCTL_NAMES):
        namespace = os.path.basename(os.path.dirname(path))
        own = _text(path, _MOST_BYTES_OF_NAME).strip()
        if own and f"{namespace}-{own}" in ids:
            yield f"{namespace}-{own}", OwnerName(os.path.basename(path), (own,))


def of_podman(ids: frozenset[str]) -> Iterator[tuple[str, OwnerName]]:
    """The containers of containers/storage, which podman and CRI-O use; CRI-O's names are not a
    person's. Source: ``containers.go`` of containers/storage.
    """
    for pattern in PODMAN_CONTAINERS:
        for path in glob.glob(pattern):
            found = _json(path)
            for one in found if isinstance(found, list) else ():
                names = one.get("names") if isinstance(one, dict) else None
                if isinstance(names, list) and names and one.get("id") in ids:
                    first, *others = map(str, names)
                    yield str(one["id"]), OwnerName(first, tuple(others))


def of_docker(ids: frozenset[str]) -> Iterator[tuple[str, OwnerName]]:
    """Docker tells its driver of endpoints; the driver notes whose they are."""
    for one in ids if os.path.isdir(DOCKER_ENDPOINTS) else ():
        found = _json(os.path.join(DOCKER_ENDPOINTS, f"{one}.json")) if _IS_HEX(one) else None
        if isinstance(found, dict) and found.get("name"):
            yield one, OwnerName(str(found["name"]), container=str(found.get("container", "")))


def of_libcni(ids: frozenset[str]) -> Iterator[tuple[str, OwnerName]]:
    """Kubernetes and podman pass a name in CNI_ARGS, which libcni keeps with each result."""
    with contextlib.suppress(OSError):
        for name in os.listdir(LIBCNI_RESULTS):
            found = _json(os.path.join(LIBCNI_RESULTS, name))
            if not isinstance(found, dict) or found.get("containerId") not in ids:
                continue
            arguments = _pairs(found.get("cniArgs"))
            if pod := arguments.get("K8S_POD_NAME"):
                namespace = arguments.get("K8S_POD_NAMESPACE")
                yield str(found["containerId"]), OwnerName(pod, (f"{namespace}/{pod}",) if namespace else ())


SOURCES: tuple[Source, ...] = (by_hand, of_containerd, of_libcni, of_podman, of_nerdctl, of_docker)
"""A later one knows better."""


def names(ids: Iterable[str]) -> dict[str, OwnerName]:
    """The name of each container that a source knows."""
    wanted = frozenset(ids)
    found: dict[str, OwnerName] = {}
    for source in SOURCES if wanted else ():
        for one, name in source(wanted):
            if name.name:
                before = found.get(one)
                found[one] = name if before is None else replace(name, others=(*name.others, *before.words))
    return found


def short(container: str, name: OwnerName | None) -> str:
    """The id as a table shows it: without containerd's namespace, and of a long one the beginning."""
    words = [word for word in (name.others if name else ()) if len(word) >= _LONG and container.endswith(f"-{word}")]
    own = words[0] if words else container
    return own[:_SHORT] if len(own) >= _LONG and _IS_HEX(own) else own


def further(container: str, name: OwnerName | None) -> str:
    """The name that a container has beside its id; "" where the id says it already."""
    return name.name if name is not None and not container.endswith(f"-{name.name}") else ""


def called(container: str, name: OwnerName | None) -> str:
    """A container in a sentence: its name, else its id as a table shows it."""
    return further(container, name) or short(container, name)


def _pairs(value: object) -> dict[str, str]:
    return {
        str(one[0]): str(one[1])
        for one in (value if isinstance(value, list) else ())
        if isinstance(one, list) and len(one) == 2
    }


def _text(path: str, most: int) -> str:
    try:
        return files.read(path, most).decode("utf-8", "replace")
    except OSError:
        return ""


def _json(path: str) -> object:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(_text(path, _MOST_BYTES) or "null")
    return None
