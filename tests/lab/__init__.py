"""Helpers of the tests: throw-away hosts and containers, traffic, and calls of the executables."""
