"""A node with containerd's CRI plugin, driven by gRPC as a kubelet does."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.commands import Outcome
from lab.machine import Machine
from lab.plugins import ROOT
from lab.protobuf import MAP, Field, Layout, Message, decode, encode

IMAGE = "docker.io/weft/busybox:1"
_CONFIG = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
"""
_SOCKET = "/run/containerd/containerd.sock"

# The messages of runtime.v1 (k8s.io/cri-api) that the tests use, with their fields' numbers there.
_METADATA = {"name": Field(1, str), "uid": Field(2, str), "namespace": Field(3, str), "attempt": Field(4, int)}
_PORT = {
    "protocol": Field(1, int),
    "container_port": Field(2, int),
    "host_port": Field(3, int),
    "host_ip": Field(4, str),
}
_NAMESPACES = {"network": Field(1, int), "pid": Field(2, int)}
_POD: Layout = {
    "metadata": Field(1, _METADATA),
    "hostname": Field(2, str),
    "log_directory": Field(3, str),
    "port_mappings": Field(5, _PORT, repeated=True),
    "labels": Field(6, MAP, repeated=True),
    "annotations": Field(7, MAP, repeated=True),
    "linux": Field(
        8, {"cgroup_parent": Field(1, str), "security_context": Field(2, {"options": Field(1, _NAMESPACES)})}
    ),
}
_ID = {"id": Field(1, str)}
_STATUS: Layout = {
    "id": Field(1, str),
    "state": Field(3, int),
    "network": Field(5, {"ip": Field(1, str), "additional": Field(2, {"ip": Field(1, str)}, repeated=True)}),
}
_CONTAINER: Layout = {
    "metadata": Field(1, {"name": Field(1, str)}),
    "image": Field(2, {"image": Field(1, str)}),
    "command": Field(3, str, repeated=True),
    "log_path": Field(11, str),
}
_EXEC: Layout = {"id": Field(1, str), "command": Field(2, str, repeated=True), "timeout": Field(3, int)}
_EXECUTED: Layout = {"stdout": Field(1, bytes), "stderr": Field(2, bytes), "code": Field(3, int)}
_CONDITION: Layout = {"type": Field(1, str), "status": Field(2, int), "reason": Field(3, str), "message": Field(4, str)}
_CALLS: dict[str, tuple[Layout, Layout]] = {
    "RunPodSandbox": ({"config": Field(1, _POD)}, _ID),
    "StopPodSandbox": (_ID, {}),
    "RemovePodSandbox": (_ID, {}),
    "PodSandboxStatus": (_ID, {"status": Field(1, _STATUS)}),
    "ListPodSandbox": ({}, {"items": Field(1, {"id": Field(1, str), "state": Field(3, int)}, repeated=True)}),
    "CreateContainer": ({"pod": Field(1, str), "config": Field(2, _CONTAINER), "sandbox": Field(3, _POD)}, _ID),
    "StartContainer": (_ID, {}),
    "ExecSync": (_EXEC, _EXECUTED),
    "Status": ({}, {"status": Field(1, {"conditions": Field(1, _CONDITION, repeated=True)})}),
}


class Refused(Exception):
    """The runtime answered with an error."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod sandbox: its id, its addresses, and the configuration it was made of."""

    id: str
    addresses: tuple[str, ...]
    config: Message


class Node(Machine):
    """A machine with containerd and one network; ``disk`` is what it keeps when it restarts."""

    def __init__(self, plugins: Path, disk: Path, conflist: Mapping[str, Any]) -> None:
        super().__init__(controllers=True)
        self._log = disk / "containerd.log"
        for folder in ("/var/lib/cni", "/var/lib/containerd"):
            kept = disk / folder.replace("/", "-")
            kept.mkdir(exist_ok=True)
            self.run("mount", "--bind", str(kept), folder)
        self.write(f"/etc/cni/net.d/10-{conflist['name']}.conflist", json.dumps(conflist))
        self.write("/run/containerd.toml", _CONFIG)
        self.run("ln", "-s", str(plugins), "/opt/cni/bin")
        self.start_runtime()

    def start_runtime(self) -> None:
        self.start("containerd", "--config", "/run/containerd.toml", log=self._log)
        ready = self.until("ctr", "version")
        assert ready.code == 0, (ready, self._log.read_text()[-2000:])

    def kill_runtime(self) -> None:
        """SIGKILL for containerd; its shims and the pods live on."""
        [process] = self.run("pidof", "containerd").stdout.split()
        self.run("kill", "-9", process)
        self.run("sh", "-c", f"while kill -0 {process} 2>/dev/null; do sleep 0.05; done")

    def add_image(self, root: Path, folder: Path) -> None:
        """Make a container's root an image of the runtime."""
        path = folder / "image.tar"
        path.write_bytes(image(root, IMAGE.removeprefix("docker.io/"), "/bin/sleep", "1000000"))
        self.run("ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "native", str(path))

    def call(self, method: str, **message: Any) -> Message:
        """One call of the RuntimeService. Raises Refused with the runtime's message."""
        import grpc  # bin/setup --test installs it

        asked, answered = _CALLS[method]
        # The socket is found from outside by the machine's first process: gRPC's threads enter no namespace.
        address = f"unix:///proc/{self.first}/root{_SOCKET}"
        with grpc.insecure_channel(address, options=[("grpc.default_authority", "localhost")]) as channel:
            stub = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
            try:
                return decode(stub(encode(message, asked), timeout=60), answered)
            except grpc.RpcError as error:
                raise Refused(f"{method}: {error.details()}") from error

    def conditions(self) -> dict[str, str]:
        """The runtime's conditions that are not met, with their messages: RuntimeReady, NetworkReady."""
        found = self.call("Status")["status"]["conditions"]
        return {one["type"]: one["message"] for one in found if not one["status"]}

    def pod(self, name: str, *, ports: Sequence[Message] = (), annotations: Mapping[str, str] | None = None) -> Pod:
        """Run a pod sandbox."""
        config: Message = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0},
            "hostname": name,
            "log_directory": "/run/pods",
            "port_mappings": list(ports),
            "annotations": dict(annotations or {}),
            "linux": {"cgroup_parent": "/pods", "security_context": {"options": {"pid": 1}}},
        }
        identifier = self.call("RunPodSandbox", config=config)["id"]
        network = self.status(identifier)["network"]
        return Pod(identifier, (network["ip"], *(one["ip"] for one in network["additional"])), config)

    def status(self, identifier: str) -> Message:
        found: Message = self.call("PodSandboxStatus", id=identifier)["status"]
        return found

    def container(self, pod: Pod, *command: str) -> str:
        """Start a container in a pod; its id."""
        config = {"metadata": {"name": "c"}, "image": {"image": IMAGE}, "command": command, "log_path": "c.log"}
        made: str = self.call("CreateContainer", pod=pod.id, config=config, sandbox=pod.config)["id"]
        self.call("StartContainer", id=made)
        return made

    def execute(self, container: str, *command: str) -> str:
        """The output of a command in a container, "" if it fails."""
        outcome = self.call("ExecSync", id=container, command=command, timeout=10)
        return outcome["stdout"].decode() if outcome["code"] == 0 else ""

    def end(self, pod: Pod) -> None:
        """Stop and remove, as a kubelet does; it may repeat either."""
        self.call("StopPodSandbox", id=pod.id)
        self.call("RemovePodSandbox", id=pod.id)

    def weft(self, *argv: str) -> Outcome:
        """The command ``weft``, which may fail."""
        return self.run(str(ROOT / "bin" / "weft"), *argv, check=False)

    def leases(self, network: str) -> list[str]:
        """The addresses that are taken on disk."""
        names = [Path(path).name for path in self.files(f"/var/lib/cni/networks/{network}")]
        return [name for name in names if not name.startswith(("last_reserved_ip", "lock"))]


def image(root: Path, name: str, *command: str) -> bytes:
    """An image in docker's archive format: the folder as its only layer, and a command."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(root, arcname=".")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    files = {"config.json": json.dumps(config).encode(), "layer.tar": layer.getvalue()}
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files["manifest.json"] = json.dumps(manifest).encode()
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return found.getvalue()
