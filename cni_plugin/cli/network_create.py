"""``weft network create``, with the options of docker's and podman's."""

from __future__ import annotations

import re

import click

from cni_plugin.cli import clustered
from cni_plugin.cli.network import inspected
from cni_plugin.cli.options import common, pairs
from cni_plugin.cli.output import as_json, say, warn
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import conflists
from cni_plugin.networks import create as creating
from cni_plugin.networks.chain import Chain, Target
from cni_plugin.networks.create import CreateOptions
from cni_plugin.plan import modules
from weft.errors import BadOption, ConfigProblem


@click.command()
@common
@click.argument("name", required=False, default="")
@click.option("-d", "--driver", default="bridge", show_default=True, help=f"One of {', '.join(creating.drivers())}.")
@click.option("--subnet", "subnets", multiple=True, metavar="CIDR", help="Subnet, like 10.89.7.0/24. Repeatable.")
@click.option("--gateway", "gateways", multiple=True, metavar="IP", help="Gateway, one for each subnet.")
@click.option(
    "--ip-range",
    "ranges",
    multiple=True,
    metavar="CIDR|FIRST-LAST",
    help="Allocate addresses from this range.",
)
@click.option("--ipv6", is_flag=True, help="Enable IPv6; a free subnet of fd00::/8 unless specified.")
@click.option("--internal", is_flag=True, help="Restrict external access: no gateway, default route or masquerade.")
@click.option("--names", is_flag=True, help="Resolve container and service names with weft's agent.")
@click.option("-o", "--opt", "options", multiple=True, metavar="KEY=VALUE", help="Driver options (above). Repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label. Repeatable.")
@click.option("--disable-dns", is_flag=True, help="Compatibility with podman: the default without --names.")
@click.option("--attachable", is_flag=True, help="Compatibility with docker: every network is.")
@click.option("--scope", default="", metavar="SCOPE", help="Compatibility with docker: it is the driver's.")
@click.option(
    "--ipam-driver",
    type=click.Choice(("default", *creating.IPAM_DRIVERS)),
    default="default",
    show_default=True,
    help="Where addresses come from: this host's leases, a DHCP server, or nowhere.",
)
@click.option("--ipam-opt", "ipam_options", multiple=True, metavar="KEY=VALUE", help="Compatibility: ignored.")
@click.option("--aux-address", "others", multiple=True, metavar="NAME=IP", help="No container gets it. Repeatable.")
@click.option("--dns", "servers", multiple=True, metavar="IP", help="Name server of containers. Repeatable.")
@click.option("--route", "routes", multiple=True, metavar="CIDR,IP[,METRIC]", help="Route in containers. Repeatable.")
@click.option("--interface-name", "link", metavar="LINK", default="", help="The bridge, or the parent link.")
@click.option("--ignore", is_flag=True, help="Succeed if the network exists.")
@pass_tool
def create(
    tool: Tool,
    name: str,
    driver: str,
    subnets: tuple[str, ...],
    gateways: tuple[str, ...],
    ranges: tuple[str, ...],
    ipv6: bool,
    internal: bool,
    names: bool,
    options: tuple[str, ...],
    labels: tuple[str, ...],
    disable_dns: bool,
    attachable: bool,
    scope: str,
    ipam_driver: str,
    ipam_options: tuple[str, ...],
    others: tuple[str, ...],
    servers: tuple[str, ...],
    routes: tuple[str, ...],
    link: str,
    ignore: bool,
    json_output: bool,
) -> None:
    """Create a network and print its name.

    Nothing is set up before the first container is attached. The default for NAME is weft0, weft1 …;
    the default subnet is the first free /24 from 10.89.0.0 on.

    \b
    Networks of driver overlay are created on all hosts of the cluster, by default with a free /16.

    
    Options of the driver bridge, under their short and Docker's names:
      mtu       com.docker.network.driver.mtu: bytes
      bridge    com.docker.network.bridge.name: the bridge's name
      ip-masq   com.docker.network.bridge.enable_ip_masquerade: true or false
      icc       com.docker.network.bridge.enable_icc: false isolates containers from each other
      vlan      1 to 4094
      hairpin   true or false
      isolation    closed (only established connections and published ports), routed or open
      host-access  open, or dns: what containers can reach on this host
    \b
    Example:
      weft network create blue --subnet 10.89.7.0/24 -o mtu=1400
    """
    if names and disable_dns:
        raise BadOption("--names and --disable-dns are mutually exclusive")
    if scope not in ("", "swarm" if modules.declared(driver).clustered else "local"):
        raise BadOption(f"invalid --scope {scope!r}: networks of driver {driver} have another one")
    if ignore and name and (known := tool.network_if_known(name)) is not None:
        _report(tool, known.name, json_output)
        return
    if pairs("--ipam-opt", ipam_options):
        warn(f"ignoring --ipam-opt: the IPAM driver {ipam_driver} has no options")
    requested = CreateOptions(
        driver,
        subnets,
        gateways,
        ranges,
        ipv6,
        internal,
        names,
        _options(driver, pairs("--opt", options), link),
        pairs("--label", labels),
        "" if ipam_driver == "default" else ipam_driver,
        tuple(pairs("--aux-address", others).values()),
        servers,
        routes,
    )
    host = tool.service.kernel.host
    if modules.declared(driver).clustered:
        _report(tool, clustered.create(tool, name, requested), json_output)
        return
    with conflists.locked(tool.config):
        existing = tool.networks()
        chosen = name or creating.free_name(existing, host)
        content = creating.build(chosen, requested, existing, host)
        parsed = conflists.parse(chosen, content)
        probe = Target("validation", "/run/netns/validation", "eth0")
        try:
            Chain(tool.service, parsed, probe, tool.path).validate()
        except ConfigProblem as error:
            raise BadOption(_IN_RANGE.sub(lambda found: _OPTIONS[found[1]], error.message)) from error
        conflists.write(tool.config, chosen, content)
    _report(tool, chosen, json_output)


_OPTIONS = {"subnet": "--subnet", "gateway": "--gateway", "rangeStart": "--ip-range", "rangeEnd": "--ip-range"}
_IN_RANGE = re.compile(rf"ipam\.ranges\[\d+]\[\d+]\.({'|'.join(_OPTIONS)})")


def _report(tool: Tool, name: str, json_output: bool) -> None:
    if json_output:
        as_json(inspected(tool, tool.network(name), []))
    else:
        say(name)


def _options(driver: str, given: dict[str, str], link: str) -> dict[str, str]:
    """The driver's options with the link of ``--interface-name``. Raises BadOption."""
    if not link:
        return given
    declared = modules.declared(driver)
    option = next((one for one in declared.options if one.key == declared.parent_key and one.names), None)
    if option is None:
        raise BadOption(f"--interface-name is not supported by driver {driver}, which is on no link of the host")
    if any(name in given for name in option.names):
        raise BadOption(f"--interface-name and --opt {option.names[0]} are mutually exclusive")
    return {**given, option.names[0]: link}
