"""Networks as an operator sees them: network lists, endpoints, subnets, leases, doctor's findings."""
