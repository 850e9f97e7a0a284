"""``weft``, the command a person debugs with. It formats what the service and the kernel's listings return."""

from __future__ import annotations


def main() -> None:
    """The entry of ``bin/weft`` and of an installed weft; never returns."""
    from cni_plugin.cli.root import weft  # click takes 60 ms, which nobody who imports a sibling should pay

    weft.main(prog_name="weft")
