"""``weft install``: a folder of plugins for container runtimes, from an installed package."""

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
@click.option("--replace", is_flag=True, help="Also replace plugins there that are not weft's.")
def install(folder: str, replace: bool, json_output: bool) -> None:
    """Make FOLDER what a container runtime looks for plugins in: weft, and links to it under every name it answers to.

    Run it again after each upgrade. What else is in the folder stays; a plugin that is not weft's is only replaced
    with --replace. Besides, two scripts are put beside this Python: weft-plugin and weft-engine.

    \b
    Example:
      weft install /opt/cni/bin
    """
    if not folder:
        raise BadOption("FOLDER is empty")
    place = os.path.abspath(folder)
    compiled = installation.compiled_client()
    installation.make(place, installation.installed(), compiled, replace=replace)
    if json_output:
        as_json({"folder": place, "compiled": compiled is not None, "plugins": [OWN_NAME, *modules.plugins()]})
        return
    say(f"{place}: {OWN_NAME}, and {len(modules.plugins())} names that lead to it")
    if compiled is None:
        say("built without a C compiler: each call starts Python; install one and weft again to have it faster")
