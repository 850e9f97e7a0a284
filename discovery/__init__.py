"""Services: registered, found by HTTP and DNS, checked, and balanced by the kernel. The agent (``weft agent``) is made of this."""
