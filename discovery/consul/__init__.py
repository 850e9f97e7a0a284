"""Consul's formats and semantics, without I/O but for the client and definition files.

``json_fields`` reads Consul's JSON; on it ``registration`` and ``check_definitions``, from files
``definition_files`` and ``hcl``; ``filter`` on ``regex``; ``kv_txn`` and ``sessions`` work on the
store; ``client`` is the CLI's HTTP client.
"""

API_LEVEL = "1.22.0"
"""The version of Consul whose HTTP API this is; clients compare it with what they need."""
