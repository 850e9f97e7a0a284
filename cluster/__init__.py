"""Many hosts, the agent's side: membership, nodes, certificates, blocks of addresses and peers.

Nothing here is on the way of a CNI call: what an ADD needs of the cluster is in files (``weft.overlay``).
"""
