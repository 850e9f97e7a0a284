"""``weft install`` and ``weft uninstall``: the plugins' folder, systemd's units, and leaving nothing behind."""

from __future__ import annotations

import os

import click

from cluster.etcd_server import UNIT, EtcdServer
from cluster.local import Files
from cni_plugin.cli import agents, documents
from cni_plugin.cli.manual import COMPLETIONS
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, count, say
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.entry import installation, units
from cni_plugin.plan import modules
from cni_plugin.service.gc import collect_stale
from cni_plugin.service.orphans import orphans
from cni_plugin.wire.plugins import OWN_NAME
from weft.errors import BadOption, InUse

_KEPT = ("/etc/weft", "/var/lib/weft", "/var/log/weft", "/var/lib/cni/networks")
_NOT_STARTED = {
    "weft-agent.service": "names and services: systemctl enable --now weft-agent",
    "weft-docker.socket": "Docker's networks: systemctl enable --now weft-docker.socket",
}


@click.command()
@common
@click.argument("folder", metavar="[FOLDER]", required=False, default="")
@click.option("--replace", is_flag=True, help="Replace plugins of other projects.")
@click.option("--systemd", is_flag=True, help="Install systemd's units, and start the engine's socket and the timer.")
@click.option(
    "--share", metavar="FOLDER", default="", help="Install man pages, completion, examples: /usr/local/share."
)
def install(folder: str, replace: bool, systemd: bool, share: str, json_output: bool) -> None:
    """Install weft's CNI plugins into FOLDER: the executable, and a symbolic link for each plugin.

    Run it again after every upgrade. Other files are kept; plugins of other projects are only replaced
    with --replace. The scripts weft-plugin and weft-engine are installed beside the Python interpreter.

    With --systemd units are written to /etc/systemd/system: the engine and its socket, the agent, the
    driver for Docker's networks, and a timer for weft gc. The agent and the driver are not started. On a
    host of a cluster the unit of etcd is replaced, too; etcd is not restarted.

    \b
    Example:
      weft install /opt/cni/bin --systemd --share /usr/local/share
    """
    if not (folder or systemd or share):
        raise BadOption("no FOLDER, --systemd or --share is given", hint="weft install /opt/cni/bin")
    made: dict[str, object] = {}
    if folder:
        made |= _install_plugins(os.path.abspath(folder), replace, json_output)
    if systemd:
        written = units.write(installation.command())
        problem = units.start()
        if (etcd := EtcdServer(Files(), "")).is_installed:  # by weft cluster init or join, of an earlier release
            etcd.install()
            written.append(UNIT)
        made |= {"units": written, **({"problem": problem} if problem else {})}
        if not json_output:
            say(f"{units.FOLDER}: installed {', '.join(written)}")
            say(problem or f"enabled and started {', '.join(units.STARTED)}")
            for name, how in _NOT_STARTED.items() if not problem else ():
                say(f"not started: {name}, for {how}")
    if share:
        pages = documents.write(os.path.abspath(share))
        made |= {"documents": pages}
        if not json_output:
            say(f"{share}: installed man pages, completion of {', '.join(COMPLETIONS)}, and examples in {pages[-1]}")
    others = agents.others()
    if others and not json_output:
        say(f"{' and '.join(others)}: of another release or installation, still running; to replace: weft up --restart")
    if json_output:
        as_json({**made, "outdated": list(others)})


def _install_plugins(path: str, replace: bool, json_output: bool) -> dict[str, object]:
    compiled = installation.compiled_client()
    installation.make(path, installation.installed(), compiled, replace=replace)
    if not json_output:
        say(f"{path}: installed {OWN_NAME} and {len(modules.plugins())} plugins")
    if compiled is None and not json_output:
        say("built without a C compiler: every call starts Python; for faster calls install one, then weft again")
    return {"folder": path, "compiled": compiled is not None, "plugins": [OWN_NAME, *modules.plugins()]}


@click.command()
@common
@click.argument("folders", metavar="[FOLDER]...", nargs=-1)
@click.option("--keep", is_flag=True, help="Leave attachments as they are; their containers keep their networks.")
@pass_tool
def uninstall(tool: Tool, folders: tuple[str, ...], keep: bool, json_output: bool) -> None:
    """Stop weft, and remove what it has changed on this host; say what stays.

    Removes links, addresses and rules of networks without attachments, virtual addresses, systemd's
    units that weft install has written, and weft's plugins, man pages and completion from each FOLDER.
    Refused while there are attachments, unless --keep. Definitions of networks, registered services and
    settings stay.

    \b
    Example:
      weft uninstall /opt/cni/bin /usr/local/share
    """
    tool.prepare_to("remove weft")
    attachments = [str(record.attachment) for record in tool.service.records.all()]
    attachments += orphans(tool.service).unrecorded  # their records are lost
    if attachments and not keep:
        raise InUse(
            f"{count(len(attachments), 'attachment')}: {', '.join(attachments[:5])}{', …' * (len(attachments) > 5)}",
            hint="remove their containers, or weft uninstall --keep leaves them their networks",
        )
    stopped = agents.stop_all()
    freed = [*collect_stale(tool.service).leftovers]
    if not attachments:
        agents.remove_virtual_addresses()
    removed = [os.path.join(units.FOLDER, name) for name in units.remove()]
    told = [*freed, *removed]
    for path in map(os.path.abspath, folders):
        plugins, pages = installation.remove(path), documents.remove(path)
        removed += [*(os.path.join(path, name) for name in plugins), *pages]
        told += [f"{count(len(plugins), 'plugin')} in {path}"] if plugins else []
        told += [f"man pages, completion and examples in {path}"] if pages else []
    left = [path for path in (tool.config, *_KEPT) if _has_files(path)]
    if json_output:
        as_json({"stopped": stopped, "freed": freed, "removed": removed, "attachments": attachments, "left": left})
        return
    for line in (*(f"stopped {one}" for one in stopped), *(f"removed {one}" for one in told)):
        say(line)
    for attachment in attachments:
        say(f"left attachment {attachment}")
    for path in left:
        say(f"left {path}")
    say(installation.removal())


def _has_files(path: str) -> bool:
    """Whether a folder has anything but locks of runtimes."""
    return os.path.isdir(path) and any(not name.endswith(".lock") for name in os.listdir(path))
