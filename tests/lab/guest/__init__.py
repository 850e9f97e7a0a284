"""A full Debian kernel in an emulator, over this machine's own files: what bin/vm runs."""
