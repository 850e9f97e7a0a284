"""nftables: installing a ruleset and verifying it, and its elements."""
