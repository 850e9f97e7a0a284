"""What files of ``weft apply`` declare: networks, switches, routers, interfaces and services.

``document`` reads the files, ``desired`` makes operations of what they declare, and the executor applies
those that the host lacks, or undoes them all. There is no engine of its own: an interface is an
attachment, a network a file of the CNI folder, a service a registration with the agent.
"""
