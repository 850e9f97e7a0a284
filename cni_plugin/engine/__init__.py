"""The engine: a long-lived daemon that serves CNI calls, which saves starting Python for each call.

It differs from a call in its own process in speed only. What it keeps in memory is a cache: records,
leases and locks are files, shared with calls that run in their own process. Both may run at the same
time, and the engine may be killed at any moment.
"""
