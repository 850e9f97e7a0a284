"""weft's own nftables tables as data: packets (``inet weft``) and frames (``bridge weft``)."""
