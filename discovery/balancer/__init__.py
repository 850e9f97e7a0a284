"""Layer-4 load balancer in nftables: a virtual address per service, DNAT to healthy instances.

``desired`` derives virtual services from the catalog, ``algorithms`` assigns the slots of their
tables, ``program`` turns both into set and map elements of the table that ``rules`` describes and
``table`` installs; ``proxier`` syncs the kernel in one thread, ``draining`` tracks old connections,
``allocate`` assigns addresses, ``balancer`` is the asyncio front. It stands on the catalog and
``weft.kernel``.
"""
