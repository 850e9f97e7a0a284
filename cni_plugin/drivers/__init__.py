"""Drivers: each creates the container's interface in its own way. The file name is the driver's name."""
