"""The entry points: CNI, netavark, the shim that runtimes execute, and its installation."""
