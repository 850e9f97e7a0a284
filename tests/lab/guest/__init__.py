"""bin/vm: a full Debian kernel in an emulator, with the files of this machine."""
