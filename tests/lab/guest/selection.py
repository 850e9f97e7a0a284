"""Tests that always run in the vm tier: for every driver and feature, at least one of each kind.

The other tests of the netns tier come to it only where the machine's own kernel had to skip them.
Every driver and every feature has a row here, but for drivers that have a ``Case`` and a conflist
of their own name: their row is filled in. tests/unit/test_selection.py compares with the files.
"""

from __future__ import annotations

from enum import StrEnum

from cni_plugin.plan import modules
from lab.cases import CASES
from lab.sample import taken


class Kind(StrEnum):
    CONFLIST = "a conflist of conf/, as a runtime uses it: ADD, traffic, CHECK, DEL, DEL again, all as before"
    TRAFFIC = "what it is for, shown by traffic"
    TRUTH = "CHECK complains of each thing that is broken, and of nothing else"
    DELETE = "DEL with a fault in each of its steps, DEL again, all as before"
    FAULTS = "a fault before each step of ADD"
    KILLS = "a SIGKILL before each step of ADD and of DEL"


Tests = dict[Kind, tuple[str, ...]]
_SWEPT = {
    Kind.TRUTH: ("truth.py::test_every_operation_that_is_undone_is_missed[{}]",),
    Kind.DELETE: ("faults.py::test_in_every_step_of_a_removal[{}]",),
    Kind.FAULTS: ("faults.py::test_before_every_step[{}]",),
    Kind.KILLS: tuple(f"kills.py::test_kill_before_every_operation_in_turn[{{}}-{verb}]" for verb in ("ADD", "DEL")),
}


def _tests(conflist: str, traffic: str, case: str = "", **others: str) -> Tests:
    """A row: ``conflist`` is a file of conf/ without ending, ``traffic`` a test of tests/netns.

    ``case`` is the name of the ``Case`` in lab.cases that the tests for all drivers run:
    test_truth.py, test_faults.py and test_kills.py. A driver without a ``Case`` names tests of its
    own instead, ``truth=``, ``delete=``, ``faults=`` and ``kills=``: one of each ``Kind``, several
    separated by spaces. Tests are written without "tests/netns/test_".
    """
    found: Tests = {Kind.CONFLIST: (f"conf.py::test_a_conflist_works[{conflist}]",), Kind.TRAFFIC: (traffic,)}
    if case:
        found |= {kind: tuple(test.format(case) for test in tests) for kind, tests in _SWEPT.items()}
    found |= {Kind[name.upper()]: tuple(tests.split()) for name, tests in others.items()}
    return {kind: tuple(f"tests/netns/test_{test}" for test in tests) for kind, tests in found.items()}


DRIVERS: dict[str, Tests] = {
    "bridge": _tests("vlan", "bridge.py::test_containers_reach_each_other_and_the_host", "bridge-dual"),
    "ptp": _tests("ptp", "ptp.py::test_containers_reach_each_other_and_the_host", "ptp"),
    "loopback": _tests("loopback", "loopback.py::test_lo_is_up_and_down_again", "loopback"),
    "macvlan": _tests("macvlan", "macvlan.py::test_containers_and_the_neighbour_reach_each_other", "macvlan"),
    "ipvlan": _tests("ipvlan", "ipvlan.py::test_modes", "ipvlan"),
    "vlan": _tests("vlan-link", "vlan.py::test_frames_bear_the_tag", "vlan"),
    "dummy": _tests("dummy", "dummy.py::test_it_holds_its_addresses", "dummy"),
    "overlay": _tests("overlay", "overlay.py::test_all_pairs_reach_each_other_with_their_own_addresses", "overlay"),
    "tap": _tests("tap", "tap.py::test_a_program_receives_what_is_sent_to_it", "tap"),
    "host_device": _tests(
        "host-device",
        "host_device.py::test_without_ipam_it_is_only_moved_and_up",
        truth="host_device.py::test_check_sees_what_is_broken_by_hand",
        delete="host_device.py::test_the_container_has_it_and_the_host_gets_it_back",
        faults="host_device.py::test_a_fault_at_every_step[Steps]",
        kills="host_device.py::test_a_kill_at_every_change[ADD] host_device.py::test_a_kill_at_every_change[DEL]",
    ),
    # It does not change the kernel: it returns the host's addresses, and writes only a record.
    "host": _tests(
        "host",
        "host.py::test_the_hosts_addresses_are_answered",
        truth="host.py::test_the_hosts_addresses_are_answered",
        delete="host.py::test_the_hosts_addresses_are_answered",
        faults="host.py::test_nothing_is_done_that_could_fail",
        kills="host.py::test_a_kill_at_every_change",
    ),
}
for _name in sorted({*modules.drivers()} & {case.name for case in CASES}):
    DRIVERS.setdefault(_name.replace("-", "_"), _tests(_name, f"conf.py::test_a_conflist_works[{_name}]", _name))
FEATURES: dict[str, Tests] = {
    "masquerade": _tests("dual-stack", "masquerade.py::test_the_outside_sees_the_host[bridge]", "bridge-dual"),
    "portmap": _tests("chain", "portmap.py::test_a_port_is_reached_from_everywhere[bridge]", "portmap-chained"),
    "firewall": _tests("features", "firewall.py::test_networks_are_kept_apart", "chain-firewall"),
    "bandwidth": _tests(
        "features", "bandwidth.py::test_both_directions_are_as_fast_as_allowed[bridge]", "chain-bandwidth"
    ),
    "uplink": _tests("uplink", "uplink.py::test_networks_share_by_weight_and_borrow_what_is_idle[up]", "weft-uplink"),
    "tuning": _tests("features", "tuning.py::test_all_is_as_asked_and_then_as_before", "chain-tuning"),
    "sbr": _tests("sbr", "sbr.py::test_two_links_each_with_a_way_of_its_own", "chain-sbr"),
    "vrf": _tests("vrf", "vrf.py::test_one_subnet_twice_in_two_domains", "chain-vrf"),
    # Called as ``weft``, both are the default.
    "isolation": _tests(
        "internal",
        "isolation.py::test_networks_of_weft_are_closed_to_each_other_and_to_the_outside[bridge]",
        "weft-everything",
    ),
    "limits": _tests("isolated", "limits.py::test_dns_queries_are_limited_before_the_name_server", "weft-everything"),
    "spoofing": _tests("isolated", "spoofing.py::test_with_checks_no_forged_frame_arrives", "weft-everything"),
}
NOT_YET = frozenset({"names"})
"""Features without every kind of test: ``names`` would need an agent at every step."""
IPAM: dict[str, Tests] = {
    "dhcp": _tests(
        "dhcp",
        "dhcp.py::test_macvlan_gets_an_address_uses_it_and_gives_it_back",
        truth="dhcp.py::test_the_link_goes_down_with_the_lease[expiry]",
        delete="dhcp.py::test_delete_works_when_the_container_and_the_keeper_are_gone",
        faults="dhcp.py::test_a_fault_after_the_lease_gives_it_back",
        kills="dhcp.py::test_a_kill_between_any_two_steps_leaves_nothing_that_delete_does_not_end",
    ),
}
ROWS: dict[str, Tests] = {**DRIVERS, **FEATURES, **IPAM}
SHORT = frozenset({Kind.CONFLIST, Kind.TRAFFIC})
"""The kinds that every run takes for every row."""
SHARE = 10
"""Of the other kinds, which inject faults and kills, a run takes the tests of one row in ten."""
EVERY = tuple(
    dict.fromkeys(
        (
            "tests/vm",
            # Without the checks the same frames arrive, so the test above proves that the checks
            # work.
            "tests/netns/test_spoofing.py::test_without_checks_every_forged_frame_arrives",
            *(test for row in ROWS.values() for tests in row.values() for test in tests),
        )
    )
)
"""All tests of the table: ``bin/vm test --long``."""


def always() -> list[str]:
    """The tests that a run takes even though netns ran them: EVERY but for a sample of the long ones."""
    rows = [(f"{name} {kind.name}", kind, tests) for name, row in ROWS.items() for kind, tests in row.items()]
    mine = {test for name, kind, tests in rows if kind in SHORT or taken(name, SHARE) for test in tests}
    left = {test for _, _, tests in rows for test in tests} - mine
    return [test for test in EVERY if test not in left]
