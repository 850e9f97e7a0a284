"""The kernel's verbs on Linux: netlink, nftables, sysctls, and what the running kernel can do."""
