"""``weft docker``: networks and addresses of Docker's containers, as a remote driver of libnetwork.

Below it is the service of CNI calls: an endpoint of Docker's is an attachment with a plan and a record.
"""
