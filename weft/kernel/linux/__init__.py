"""``weft.kernel.interface`` on Linux, and probing of what the kernel supports."""
