"""The keeper: the long-lived process that renews the DHCP leases of this host's containers.

It is started by the first ADD that needs it and ends when there is nothing to renew. What it knows is in files
(``ipam/dhcp_leases.py``): ADD writes them, DEL gives the lease back and removes them, so neither waits for the keeper.
"""
