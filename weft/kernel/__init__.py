"""The kernel: what weft asks of it (``interface``), asked of Linux (``linux``) or of dicts (``fake``)."""
