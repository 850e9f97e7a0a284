"""The engine imports all modules before it forks: no call imports a module of weft.

Otherwise each engine process would import it again, while a client waits.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lab.calls import variables
from lab.cases import CASES, Case
from lab.ground import prepare
from lab.host import Host
from lab.plugins import ROOT

_SCRIPT = """
import json, sys

sys.path.insert(0, sys.argv[1])
from cni_plugin.engine import main, server

server.preload()
from cni_plugin.entry import cni
from cni_plugin.service import verbs

known = set(sys.modules)
confs, variables = json.load(sys.stdin)
results, previous = [], []
for verb, order in (("ADD", 1), ("CHECK", 1), ("DEL", -1), ("DEL", -1), ("GC", -1)):
    for place, conf in list(enumerate(confs))[::order]:
        told = {**conf, "cni.dev/valid-attachments": []} if verb == "GC" else conf
        if verb == "CHECK" or previous and verb == "ADD":
            told = {**told, "prevResult": previous[-1]}
        environ = {**variables, "CNI_COMMAND": verb}
        status, output = cni.run(conf["type"], environ, json.dumps(told).encode(), verbs.handle)
        results.append((verb, conf["type"], status, output.decode()))
        if verb == "ADD" and not status:
            previous.append(json.loads(output))
imported = sorted(name for name in set(sys.modules) - known if name.split(".")[0] in ("weft", "cni_plugin", "ipam"))
print(json.dumps([imported, [one for one in results if one[2]]]))
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_call_imports_a_module(host: Host, case: Case) -> None:
    prepare(host, case)
    confs = [conf for conf in (case.first, case.conf) if conf]
    text = json.dumps([confs, variables("", "c1", host.container(), "eth0")])
    command = [sys.executable, "-c", _SCRIPT, str(ROOT)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    imported, failed = json.loads(done.stdout)
    assert failed == []
    assert imported == []
