"""Links, addresses, routes and bridge VLANs over route-netlink, one module a noun.

``socket`` sends and collects, ``codec`` is the only importer of pyroute2, ``refusals`` turns an errno into a
sentence; the others build messages and read answers. Source: ``rtnetlink(7)``.
"""
