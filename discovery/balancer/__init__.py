"""Virtual IPs: one address for a service, whose connections the kernel spreads over the instances.

``desired`` says what should be so, from the catalog alone; ``algorithms`` deals a service's slots out; ``program``
turns both into elements of the table that ``rules`` describes; ``table`` keeps the kernel's like that; ``draining``
looks after connections of instances that left; ``allocate`` finds addresses; ``balancer`` ties them together.
"""
