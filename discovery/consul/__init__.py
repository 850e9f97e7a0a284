"""Consul's formats and semantics: definitions, filters, transactions, sessions."""
