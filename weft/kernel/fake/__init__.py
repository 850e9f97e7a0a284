"""A kernel in memory for tests; the contract tests run on it and on Linux."""
