"""The engine: a long-lived process that does what the executable would do in its own, without starting a Python for it.

It differs in speed only. What it keeps in memory is a cache: records, leases and locks are files, the same ones that
a process of its own uses, so the two may work side by side and the engine may be killed at any moment.
"""
