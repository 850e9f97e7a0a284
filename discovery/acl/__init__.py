"""Access control as Consul's: rules, policies, roles and tokens, and what a caller may do."""
