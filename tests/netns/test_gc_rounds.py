"""GC with random lists of valid attachments, while ADDs run: what is valid stays whole, all else goes."""

from __future__ import annotations

import os
import random
from functools import partial

from lab.calls import Answer, Weft, at_once, leases
from lab.cases import conf, pool
from lab.ground import rest
from lab.host import Host
from lab.sample import offset

ROUNDS = int(os.environ.get("WEFT_TEST_ROUNDS", "6"))
"""Of which a run takes few; docs/reliability.md says how many ran by hand."""

RED = conf(
    "weft", "red",
    {"driver": "bridge", "bridge": "wred", "isGateway": True, "ipMasq": True, "ipam": pool("10.61.0.0/26")},
)  # fmt: skip


def test_what_is_valid_stays_and_all_else_goes(host: Host) -> None:
    weft = Weft()
    dice = random.Random(offset("gc rounds", 1 << 30))
    paths = {f"c{number}": host.container(f"c{number}") for number in range(12)}
    attached: dict[str, Answer] = {}
    for turn in range(ROUNDS):
        kept = {name for name in attached if dice.random() < 0.6}
        adding = [name for name in paths if name not in attached and dice.random() < 0.7]
        valid = [{"containerID": name, "ifname": "eth0"} for name in (*kept, *adding)]
        collect = partial(weft, "GC", {**RED, "cni.dev/valid-attachments": valid})
        works = [partial(weft, "ADD", RED, paths[name], name) for name in adding]
        answers = at_once([*works, collect, collect])
        assert [answer for answer in answers if not answer.ok] == [], turn
        attached = {name: attached[name] for name in kept} | dict(zip(adding, answers, strict=False))
        assert sorted(owner.split()[0] for owner in leases("red").values()) == sorted(attached), turn
        complaints = {name: weft.check(RED, answer.document, paths[name], name) for name, answer in attached.items()}
        assert {name: text for name, text in complaints.items() if text} == {}, turn
        if not attached:
            assert rest(*paths.values()) == [], turn
    weft.collect(RED)
    assert rest(*paths.values()) == []
    assert leases("red") == {}
