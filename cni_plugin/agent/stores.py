"""The store of the agent: the cluster that its settings name, else a file of this host."""

from __future__ import annotations

import os
from dataclasses import replace

from cni_plugin.agent import catalog_file
from cni_plugin.agent.settings import Settings
from discovery import layout_v1
from store import Store, Unavailable
from store.embedded import open_embedded


def is_new(settings: Settings) -> bool:
    """Whether this host has no record of its cluster (``store.etcd.record``): it has never used it, or its operator
    has removed the record, and so accepted that the cluster was restored.
    """
    return settings.store is not None and not any((catalog_file.folder(settings) / "etcd").glob("client-*.json"))


async def open_store(settings: Settings, damage: str) -> Store:
    """Open it; ``damage`` is what was met in the file while it was open before. Raises StoreError."""
    if settings.store is None:
        path = catalog_file.path(settings)
        return await open_embedded(path, recover=True, suspected=damage, rename=layout_v1.renamed)
    # gRPC's C core writes every refused handshake to stderr, several a second; errors have the cause.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from store.etcd.client import open_etcd
    except ImportError as error:
        hint = "pip install grpcio protobuf beside weft, or install weft with its extra: pip install '.[cluster]'"
        raise Unavailable(f"[store] needs grpcio and protobuf: {error}", hint=hint) from error
    return await open_etcd(replace(settings.store, state=str(catalog_file.folder(settings) / "etcd")))
