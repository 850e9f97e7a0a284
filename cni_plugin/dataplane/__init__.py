"""The nftables ruleset as data."""
