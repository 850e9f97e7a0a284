"""The names weft answers to: its own, and those of the reference plugins it stands in for.

``bin/setup`` makes a link in ``bin/cni`` for each, so that the folder is a ready CNI_PATH.
"""

from __future__ import annotations

OWN_NAME = "weft"
"""The name under which the configuration's ``driver`` says what to do."""

NAMES = (
    *("bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap", "loopback"),
    *("portmap", "firewall", "bandwidth", "tuning", "sbr", "vrf", "host-local", "static", "dhcp"),
    "dnsname",
)
"""The reference plugins whose configurations weft takes and in whose shape it answers.

``dnsname`` is podman's: where there is one, podman has every network that it makes give names to its containers.
"""

FEATURE_OF = {"dnsname": "names"}
"""The feature that a plugin of another name is."""
