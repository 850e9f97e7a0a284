"""Engine, helpers and agent that an ADD starts have the capabilities of their units, and what they execute, too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cni_plugin.engine.helpers import process_count
from lab import engine as engines
from lab.callers import AUTO, CONF, NAMED, call, listener, status
from lab.host import Host
from lab.plugins import OWN_FOLDER, ROOT, Cni
from lab.waiting import until
from weft.capabilities import AGENT, ENGINE

FORBIDDEN = f"""#!{ROOT}/.venv/bin/python -IBS
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def failed(name, *arguments):
    return ctypes.get_errno() if getattr(libc, name)(*arguments) == -1 else 0
def family(number):
    try:
        socket.socket(number, socket.SOCK_SEQPACKET).close()
    except OSError as error:
        return error.errno
found = {{
    "mount": failed("mount", b"x", b"/mnt", b"tmpfs", 0, None), "chroot": failed("chroot", b"/tmp"),
    "unshare": failed("unshare", 0x00020000), "ptrace": failed("ptrace", 16, 1, None, None),
    "setuid": failed("setuid", 1), "chmod": failed("chmod", sys.argv[0].encode(), 0o4755),
    "sethostname": failed("sethostname", b"x", 1), "alg": family(38), "vsock": family(40),
    "bpf": failed("syscall", 321 if os.uname().machine == "x86_64" else 280, 99),
    "status": open("/proc/self/status").read(),
}}
json.dump(found, open(os.path.dirname(sys.argv[0]) + "/found", "w"))
print(json.dumps({{"cniVersion": "1.0.0", "ips": [{{"address": "10.83.0.9/24"}}]}}))
"""


def mask(capabilities: Any) -> str:
    return f"{sum(1 << one for one in capabilities):016x}"


def assert_confined(found: dict[str, str], capabilities: Any) -> None:
    assert [found[name] for name in ("CapInh", "CapAmb", "NoNewPrivs", "Seccomp")] == ["0" * 16, "0" * 16, "1", "2"]
    assert {found[name] for name in ("CapPrm", "CapEff")} == {mask(capabilities)}


def test_what_an_add_starts_is_confined(host: Host, folder: Path, tmp_path: Path) -> None:
    cni, path = Cni(OWN_FOLDER), host.container()
    plugin = tmp_path / "forbidden"
    plugin.write_text(FORBIDDEN)
    plugin.chmod(0o755)
    environment = cni.environment("ADD", netns=path) | AUTO
    assert call((str(OWN_FOLDER / "bridge"),), environment, CONF)[0] == 0
    until((folder / "engine.sock").exists, 60, "an engine")
    engine = listener(folder / "engine.sock")
    until(lambda: len(engines.helpers(engine)) == process_count() - 1)
    for process in (engine, *engines.helpers(engine)):
        assert_confined(status(process), ENGINE)
        assert status(process)["CapBnd"] == mask(ENGINE)
    required = {"WEFT_ENGINE": "require", "CNI_PATH": f"{tmp_path}:{OWN_FOLDER}"}
    other = cni.environment("ADD", "c2", host.container("c2")) | required
    conf = {**CONF, "ipam": {"type": "forbidden"}}
    code, answer, _ = call((str(OWN_FOLDER / "bridge"),), other, conf)
    assert code == 0, answer
    found = json.loads((tmp_path / "found").read_text())
    pairs = (line.partition(":") for line in found.pop("status").splitlines())
    assert_confined({name: value.strip() for name, _, value in pairs}, ENGINE)
    assert {name for name, number in found.items() if number != 1} == set(), found  # EPERM
    named = cni.environment("ADD", "c3", host.container("c3")) | {"WEFT_ENGINE": "require"}
    code, answer, _ = call((str(OWN_FOLDER / "weft"),), named, NAMED)
    assert code == 0, answer
    # Its bounding set is the engine's, which cannot reduce it; no_new_privs keeps NET_RAW from coming back.
    assert_confined(status(listener(folder / "agent.sock")), AGENT)


def test_the_files_of_an_agent_that_an_add_starts_are_read_only(host: Host, folder: Path) -> None:
    """As by its unit, where mounts of the host appear in its mount namespace: what it writes is kept writable,
    and namespaces that are mounted later are there. The host's own mounts stay as they are.
    """
    path = host.container()
    shared = host.start("unshare", "--mount", "--propagation", "shared", "sleep", "inf")
    within = ("nsenter", "--mount", "--target", str(shared.pid))
    until(lambda: os.readlink(f"/proc/{shared.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"))
    environment = Cni(OWN_FOLDER).environment("ADD", netns=path) | {"WEFT_ENGINE": "off"}
    code, answer, _ = call((*within, str(OWN_FOLDER / "weft")), environment, NAMED)
    assert code == 0, answer
    agent = listener(folder / "agent.sock")
    assert_confined(status(agent), AGENT)
    assert os.readlink(f"/proc/{agent}/ns/mnt") != os.readlink(f"/proc/{shared.pid}/ns/mnt")
    for path, writable in {"etc": False, "usr": False, "root": False, "run/weft": True, "proc/sys": True}.items():
        for process, expected in ((agent, writable), (shared.pid, True)):
            flags = os.statvfs(f"/proc/{process}/root/{path}").f_flag
            assert bool(flags & os.ST_RDONLY) is not expected, (process, path)
    host.run(*within, "sh", "-c", "mkdir /run/late && mount --bind /run/weft /run/late")
    assert str(folder.name) in os.listdir(f"/proc/{agent}/root/run/late")
    assert (folder / "agent" / "catalog.db").stat().st_size > 0


def test_the_files_stay_writable_where_mounts_do_not_propagate(host: Host, folder: Path) -> None:
    """Without systemd a container's namespace, mounted later, would be missing in a mount namespace of its own."""
    environment = Cni(OWN_FOLDER).environment("ADD", netns=host.container()) | {"WEFT_ENGINE": "off"}
    code, answer, _ = call((str(OWN_FOLDER / "weft"),), environment, NAMED)
    assert code == 0, answer
    agent = listener(folder / "agent.sock")
    assert_confined(status(agent), AGENT)
    assert os.readlink(f"/proc/{agent}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
