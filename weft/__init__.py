"""What everything of weft stands on: errors, values, files and locks, daemons' sockets, and the kernel."""

__version__ = "0.2.0"
