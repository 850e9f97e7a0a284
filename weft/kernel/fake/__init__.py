"""The kernel's verbs on dicts, for the tests: the same suite runs on it and on Linux."""
