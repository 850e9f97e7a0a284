"""Drivers: each makes the container's interface in its own way. A file's name is the driver's name."""
