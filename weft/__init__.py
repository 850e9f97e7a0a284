"""What all other packages are built on: errors, values, files, locks and the kernel."""

__version__ = "0.4.0"
