"""Health checks: how one is made (``probes``), when its status changes (``streak``), and all of them (``checker``)."""
