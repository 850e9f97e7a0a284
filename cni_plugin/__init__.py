"""Attachments: the CNI executable, its drivers and features, the engine, the agent and the command
line.
"""

# The scripts of weft 0.1 import cni_plugin.app and cni_plugin.shim. They call this code between the
# moment in which its files are replaced and the moment in which bin/setup or weft install replaces the
# scripts.
__path__.append(f"{__path__[0]}/entry/former")
