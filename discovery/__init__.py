"""Services: registered, found by HTTP and DNS, checked, balanced by the kernel. ``weft agent`` runs it."""
