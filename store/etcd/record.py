"""What this host knows of its cluster, in files: the store refuses to act on another or an older one.

A cluster restored from a snapshot has forgotten what its clients have seen since, and gives the same
revisions, leases and keys away again. So a file has the cluster's id, the highest revision seen, and
the revision of an operation token (``store.etcd.slots``), which nobody but this process writes. The
token also gives away a restored cluster whose revision has grown beyond the one seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
from pathlib import Path

from store.interface import Unavailable
from weft import files

log = logging.getLogger(__name__)

_FILE = re.compile(r"client-\d+\.json\Z")
_ID = re.compile(r"[0-9a-f]{16}\Z")


class WrongCluster(Unavailable):
    """The cluster is another one than this host has used, or older than it was."""


class Record:
    """The record of one open store; several in one folder have a file each, which is locked."""

    def __init__(self, folder: str) -> None:
        """Raises StateDamaged where the folder cannot be used."""
        self._folder = folder
        files.make_directory(folder, "what it knows of its etcd cluster")
        self._lock, self._path = _free(folder)
        self.client = secrets.token_hex(8)
        self.cluster = self.revision = self.marker = 0
        for path in sorted(Path(folder).iterdir()):
            if _FILE.match(path.name):
                self._load(str(path), own=str(path) == self._path)
        self._saved = (self.cluster, self.revision, self.marker)

    def _load(self, path: str, *, own: bool) -> None:
        try:
            found = json.loads(files.read(path, most=4096))
            cluster, revision, marker = (int(found[name]) for name in ("cluster", "revision", "marker"))
            client = str(found["client"])
            if not _ID.match(client) or min(cluster, revision, marker) < 0:
                raise ValueError("invalid")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("ignoring %s: %s", path, error)
            return
        self.cluster, self.revision = cluster or self.cluster, max(revision, self.revision)
        if own:
            self.client, self.marker = client, marker

    def check(self, address: str, cluster: int, revision: int, least: int) -> None:
        """Check a member's answer: its cluster, and a revision that must be ``least`` or more. Raises
        WrongCluster.
        """
        if self.cluster and cluster != self.cluster:
            raise self._refusal(
                f"etcd at {address} is cluster {cluster:x}; this host uses cluster {self.cluster:x}, "
                f"of which it has seen revision {self.revision}"
            )
        if revision < least:
            raise self._refusal(
                f"etcd at {address} is at revision {revision}, before revision {least}, which this host has seen: "
                f"the cluster was restored from an older snapshot, or has lost data"
            )
        self.cluster = cluster
        self.revision = max(self.revision, revision)

    def check_marker(self, address: str, revision: int, least: int) -> None:
        """Check the revision of an operation token, which only this process writes. Raises
        WrongCluster.
        """
        if revision < least:
            raise self._refusal(
                f"etcd at {address} has forgotten what this host wrote at revision {least}: "
                f"the cluster was restored from an older snapshot, or has lost data"
            )

    def _refusal(self, sentence: str) -> WrongCluster:
        return WrongCluster(sentence, hint=f"to accept it, stop the agent, rm -r {self._folder}, and start the agent")

    def save(self) -> None:
        """Write the file, if something has changed. Raises StateDamaged."""
        now = (self.cluster, self.revision, self.marker)
        if now == self._saved or not self.cluster:
            return
        content = {"client": self.client, "cluster": self.cluster, "revision": self.revision, "marker": self.marker}
        files.write(self._path, json.dumps(content).encode(), "what weft knows of its etcd cluster:")
        self._saved = now

    def close(self) -> None:
        """Save, and let another store have the file."""
        try:
            self.save()
        finally:
            os.close(self._lock)


def _free(folder: str) -> tuple[int, str]:
    """The first file that no other store has, by its lock: the lock's descriptor and its path."""
    number = 0
    while True:
        descriptor = os.open(f"{folder}/client-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor, f"{folder}/client-{number}.json"
        os.close(descriptor)
        number += 1
