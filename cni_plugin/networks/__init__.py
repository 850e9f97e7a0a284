"""Networks and attachments as an operator sees them: conflists, subnets, leases, findings."""
