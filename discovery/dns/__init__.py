"""DNS server: authoritative for services and container names, forwarding everything else.

``codec`` is the wire format and ``rrtypes`` the record types; ``zone`` answers for the services'
domains, ``network_zones`` and ``view`` for the containers of one network; ``responder`` turns a
query into a reply, ``server`` and ``tcp`` do the I/O, ``forwarder`` asks upstream servers. It
stands on the catalog.
"""
