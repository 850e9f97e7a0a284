"""Service discovery: Consul's catalog, API and DNS, health checks, and a kernel load balancer.

The registry publishes this node's services to the store; the catalog replicates the store in
memory; ``api``, ``dns``, ``health``, ``balancer`` and ``page`` read the catalog alone. ``consul``
parses Consul's formats. All of it stands on ``store`` and ``weft``; ``weft agent`` runs it.
"""
