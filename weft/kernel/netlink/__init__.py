"""Netlink: links, addresses, routes, neighbours and more over one transport, a module a noun.

``transport`` sends and receives for every netlink family; ``rtnetlink``, ``codec``, ``decoder`` and
``encoder`` make route netlink messages of names and values; ``attributes`` packs and parses by
number; ``constants`` has the kernel's names and ``errors`` turns an errno into one of weft's
errors. Sources: ``netlink(7)``, ``rtnetlink(7)``.
"""
