"""``weft check`` and ``weft doctor`` look at many attachments in several processes."""

from __future__ import annotations

import json
import os

import pytest

from cni_plugin.cli.listing import check
from cni_plugin.cli.tool import Tool
from cni_plugin.networks import attachments
from cni_plugin.networks.differences import LO_DOWN
from cni_plugin.networks.findings import of_attachments
from lab.calls import Weft
from lab.commands import run
from lab.confs import bridge, dual
from lab.host import Host
from weft import parallel

COUNT = 8


def test_differences_are_found_whichever_process_looks(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With sockets of their own: answers to one process never go to another."""
    forks = []
    fork = os.fork
    monkeypatch.setattr(parallel, "LEAST", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork())
    weft, conf = Weft(), bridge(dual(), isGateway=True, ipMasq=True)
    for number in range(COUNT):
        weft.add(conf, host.container(f"c{number}"), f"c{number}")
    tool = Tool()
    for each in attachments.endpoints(tool.service)[::3]:
        [inner] = [one for one in each.result.interfaces if one.name == "eth0"]
        run("ip", "-n", os.path.basename(inner.sandbox), "address", "flush", "dev", "eth0", "scope", "global")
    with pytest.raises(SystemExit) as ended:
        check.main(["--json"], obj=tool, prog_name="check")
    assert ended.value.code == 1 and len(forks) == 2
    found = {one["container"]: one["lacks"] for one in json.loads(capsys.readouterr().out)}
    assert {name for name, lacks in found.items() if lacks} == {"c0", "c3", "c6"}
    assert all("lacks the address" in lacks[0] for lacks in found.values() if lacks), found
    told = {one.what.split("/")[0] for one in of_attachments(tool.service) if LO_DOWN not in one.what}
    assert told == {"c0", "c3", "c6"} and len(forks) == 4
    tool.close()
