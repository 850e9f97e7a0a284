"""The kernel: protocols (``interface``), implemented on Linux (``linux``) and by a ``fake``."""
