"""The hold on claims of blocks after the cluster's store was restored. It is kept in a file, so that it outlasts a
restart of the agent.
"""

from __future__ import annotations

import json
import logging
import os
import time

from weft import files
from weft.errors import WeftError
from weft.kernel.host import boot_id

log = logging.getLogger(__name__)

SECONDS = 600.0
_MOST_BYTES = 1 << 24


class Hold:
    """Networks of which no block is claimed for ``SECONDS``, and all until an accepted store was read; ``folder`` has
    the file.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "restored.json")
        self._networks: frozenset[str] = frozenset()
        self._since = 0.0  # of CLOCK_BOOTTIME
        self.accepted = False
        """Whether this host's operator may have accepted a restored store, of which nothing has been read yet."""

    def includes(self, network: str) -> bool:
        return self.accepted or (network in self._networks and not self._is_over)

    def accept(self) -> None:
        """Note that the operator may have accepted a restored store; before the store is used, which then keeps a
        record of it. Raises StateDamaged.
        """
        self.accepted = True
        self._save()

    def begin(self, networks: frozenset[str]) -> None:
        """Hold the claims on blocks of these networks from now on. The hold is in force also where it cannot be
        written.
        """
        self._networks, self._since, self.accepted = networks, _now(), False
        try:
            if networks:
                self._save()
            else:
                files.remove(self._path, "the hold on claims")
        except WeftError as error:
            log.error("the hold on claims ends with this agent: %s", error)

    def end(self) -> None:
        """End it if it is over."""
        if self._networks and self._is_over:
            self.begin(frozenset())

    def read(self) -> None:
        """Read the file, if there is one. After another boot the hold begins again, since nobody knows how long that
        took; a damaged file counts as a store that was accepted.
        """
        try:
            found = json.loads(files.read(self._path, _MOST_BYTES))
            networks, self._since = frozenset(map(str, found["networks"])), float(found["since"])
            self._networks, self.accepted = networks, bool(found["accepted"])
            if networks and found["boot"] != boot_id():
                self.begin(networks)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s is damaged, claims are held: %s", self._path, error)
            self.accepted = True

    @property
    def _is_over(self) -> bool:
        return _now() - self._since > SECONDS

    def _save(self) -> None:
        files.make_directory(os.path.dirname(self._path), "the files of overlay networks")
        value = {"networks": sorted(self._networks), "since": self._since, "boot": boot_id(), "accepted": self.accepted}
        files.write(self._path, json.dumps(value).encode(), "the hold on claims", durable=True)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
