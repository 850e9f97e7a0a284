"""The keeper: the daemon that renews the DHCP leases of this host's containers.

The first ADD that needs it starts it, and it stops when there is nothing to renew. Its state is in
files (``ipam/dhcp_leases.py``): ADD writes them, DEL releases the lease and removes them; neither waits
for the keeper.
"""
