"""``weft install``: install the plugins into a folder of a container runtime."""

from __future__ import annotations

import os

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say
from cni_plugin.entry import installation
from cni_plugin.plan import modules
from cni_plugin.wire.plugins import OWN_NAME
from weft.errors import BadOption


@click.command()
@common
@click.argument("folder", metavar="FOLDER")
@click.option("--replace", is_flag=True, help="Replace plugins of other projects.")
def install(folder: str, replace: bool, json_output: bool) -> None:
    """Install weft's CNI plugins into FOLDER: the executable, and a symbolic link for each plugin.

    Run it again after every upgrade. Other files are kept; plugins of other projects are only replaced
    with --replace. The scripts weft-plugin and weft-engine are installed beside the Python interpreter.

    \b
    Example:
      weft install /opt/cni/bin
    """
    if not folder:
        raise BadOption("FOLDER must not be empty")
    path = os.path.abspath(folder)
    compiled = installation.compiled_client()
    installation.make(path, installation.installed(), compiled, replace=replace)
    if json_output:
        as_json({"folder": path, "compiled": compiled is not None, "plugins": [OWN_NAME, *modules.plugins()]})
        return
    say(f"{path}: installed {OWN_NAME} and {len(modules.plugins())} plugins")
    if compiled is None:
        say("built without a C compiler: every call starts Python; for faster calls install one, then weft again")
