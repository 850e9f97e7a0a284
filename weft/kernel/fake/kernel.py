"""The fake kernel: network namespaces and nftables in memory, for tests without root.

The contract tests run on it and on Linux, so that it behaves as Linux where weft depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.errors import Exists, Missing, NamespaceProblem
from weft.kernel.fake.calls import CallLog
from weft.kernel.fake.namespace import FakeNamespace
from weft.kernel.fake.rules import FakeRuleset
from weft.kernel.interface import Namespace
from weft.types import NamespaceId

_DEVICE = 4
_FIRST_INODE = 4026532000


class FakeKernel(CallLog):
    """Namespaces by path, and the host's. ``lacks``: unsupported kinds of links."""

    def __init__(self, *, lacks: Iterable[str] = (), host: str = "/proc/thread-self/ns/net") -> None:
        super().__init__()
        self.lacks = frozenset(lacks)
        self._namespaces: dict[str, FakeNamespace] = {}
        self._made = 0
        self._rules: FakeRuleset | None = None
        self.host: Namespace = self.add(host)

    @property
    def rules(self) -> FakeRuleset:
        if self._rules is None:
            self._rules = FakeRuleset()
        return self._rules

    def add(self, path: str) -> FakeNamespace:
        """Create a namespace. *Equivalent to:* ``ip netns add``."""
        self._made += 1
        made = FakeNamespace(self, NamespaceId(path, _DEVICE, _FIRST_INODE + self._made))
        self._namespaces[path] = made
        return made

    def remove(self, path: str) -> None:
        """Delete a namespace, its links and their peers. *Equivalent to:* ``ip netns delete``."""
        gone = self._namespaces.pop(path)
        for link in list(gone.links_by_name.values()):
            gone._remove(link)

    def add_namespace(self, path: str) -> None:
        self.called("add_namespace")
        if path in self._namespaces:
            raise Exists(f"{path} exists already")
        self.add(path)

    def remove_namespace(self, path: str) -> None:
        self.called("remove_namespace")
        if path not in self._namespaces:
            raise Missing(f"there is no namespace {path}")
        self.remove(path)

    def namespaces(self) -> tuple[FakeNamespace, ...]:
        return tuple(self._namespaces.values())

    def settle(self) -> None:
        for namespace in self.namespaces():
            namespace.settle()

    def identify(self, path: str) -> NamespaceId:
        self.called("identify")
        return self._namespaces[path].id if path in self._namespaces else NamespaceId(path)

    def open(self, path: str) -> Namespace:
        self.called("open")
        if path not in self._namespaces:
            raise NamespaceProblem(f"{path!r} is not a network namespace: No such file or directory")
        self._namespaces[path].opened += 1
        return self._namespaces[path]

    def others(self) -> tuple[str, ...]:
        self.called("others")
        return tuple(path for path, one in self._namespaces.items() if one is not self.host)

    def forked(self) -> None: ...

    def close(self) -> None: ...

    def dump(self) -> dict[str, object]:
        """The state of all namespaces and the ruleset, to compare; not recorded as calls."""
        with self.unrecorded():
            found: dict[str, object] = {one.id.path: one.dump() for one in self.namespaces()}
        found["rules"] = self.rules.dump() if self._rules is not None else {}
        return found
