"""weft apply, diff and export: what files declare, on a fake kernel."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.networks.declared import desired, document, keeping, yaml_files
from cni_plugin.networks.declared.document import KINDS
from weft.errors import ConfigProblem, KernelRefused

OFFICE = """
[switch.office]
mac = "02:00:00:00:0f:01"
mtu = 1450

[network.outside]
subnets = ["10.90.0.0/24"]

[router.edge]
nat = ["wan"]
[router.edge.interface.lan]
switch = "office"
addresses = ["10.50.0.1/24"]
[router.edge.interface.wan]
network = "outside"

[interface.printer]
namespace = "printer"
ifname = "eth0"
switch = "office"
mac = "02:00:00:00:0f:20"
addresses = ["10.50.0.20/24"]
gateways = ["10.50.0.1"]

[network.shop]
switch = "office"
router = "edge"
subnets = ["10.50.0.0/24"]
gateways = ["10.50.0.254"]
"""
TWO_OF_ONE_ADDRESS = """
[switch.b]
[interface]
i = {namespace = "n", switch = "b", addresses = ["10.1.0.5/24"]}
j = {namespace = "m", switch = "b", addresses = ["10.1.0.5/16"]}
"""
FORWARDED = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc" / "applied.toml"
    monkeypatch.setattr(keeping, "PATH", str(path))
    return path


@pytest.fixture
def office(tmp_path: Path) -> str:
    path = tmp_path / "office.toml"
    path.write_text(OFFICE)
    return str(path)


def state(run, kept: Path) -> tuple[object, ...]:
    """All that apply may change. Forwarding of the host stays on, as after any attachment."""
    networks = {path.name: path.read_text() for path in run.config.glob("*.conflist")} if run.config.exists() else {}
    found = run.kernel.dump()
    for one in found.values():
        sysctls = one.get("sysctls", {}) if isinstance(one, dict) else {}
        for key in FORWARDED:
            sysctls.pop(key, None)
    leases = sorted(path.name for path in run.folder.glob("leases/*/10.*"))
    records = sorted(path.name for path in run.folder.glob("run/attachments/*.json"))
    rules = {one.id.path: one.nft_rules for one in run.kernel.namespaces() if one.nft_rules}
    return found, rules, networks, leases, records, kept.read_text() if kept.exists() else ""


def test_it_is_made_once_and_removed_with_prune(run, office: str, kept: Path, tmp_path: Path) -> None:
    planned = run("diff", "-f", office)
    assert planned.code == 1
    assert "ip link add office address 02:00:00:00:0f:01 mtu 1450 type bridge" in planned.out.splitlines()
    assert not run.config.exists() or not list(run.config.glob("*.conflist"))

    made = run.good("apply", "-f", office).splitlines()
    assert made[0] == "made switch office" and "made interface eth0 of printer" in made
    bridge = run.kernel.host.link("office")
    assert (bridge.kind, bridge.mac, bridge.mtu, bridge.up) == ("bridge", "02:00:00:00:0f:01", 1450, True)
    printer = run.kernel.open("/run/netns/printer")
    assert printer.link("eth0").mac == "02:00:00:00:0f:20"
    assert [str(one) for one in printer.addresses("eth0", 4)] == ["10.50.0.20/24"]
    edge = run.kernel.open("/run/netns/edge")
    assert edge.sysctl(FORWARDED[0]) == "1"
    assert edge.nftables_listing("chain inet weft_router nat_postrouting") == 'oifname "wan" masquerade'
    [plugin] = run.list("shop")["plugins"]
    assert plugin["bridge"] == "office"
    assert plugin["ipam"]["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.50.0.1"}]
    assert plugin["ipam"]["ranges"][0][0]["exclude"] == ["10.50.0.1", "10.50.0.20"]

    before = state(run, kept)
    assert run.good("apply", "-f", office) == "nothing to change\n"
    assert run.good("apply") == "nothing to change\n"
    assert state(run, kept) == before

    nothing = tmp_path / "nothing.toml"
    nothing.write_text("")
    assert run.good("apply", "-f", str(nothing)) == "nothing to change\n"  # nothing is removed without --prune
    assert state(run, kept) == before
    removed = run.good("apply", "-f", str(nothing), "--prune").splitlines()
    assert removed[-1] == "removed switch office" and len(removed) == len(made)
    assert run.kernel.host.link("office") is None
    assert not run.kernel.identify("/run/netns/edge").known
    assert not kept.exists() and not list(run.config.glob("*.conflist"))


def test_what_is_exported_declares_the_same(run, office: str, kept: Path, tmp_path: Path) -> None:
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24", "--gateway", "10.7.0.9", "-o", "mtu=1400",
             "--label", "a=b", "--ip-range", "10.7.0.128-10.7.0.200")  # fmt: skip
    run.good("apply", "-f", office)
    text = run.good("export")
    assert {**tomllib.loads(text)} == json.loads(run.good("export", "--json"))
    (tmp_path / "all.yaml").write_text(run.good("export", "--format", "yaml"))
    assert run.good("apply", "-f", str(tmp_path / "all.yaml"), "-n") == "nothing to change\n"
    (tmp_path / "all.toml").write_text(text)
    before = state(run, kept)[:-1]
    assert run.good("apply", "-f", str(tmp_path / "all.toml")) == "nothing to change\n"
    assert state(run, kept)[:-1] == before
    assert "[network.blue]" in kept.read_text()


def test_what_an_export_leaves_out_is_said(run, kept: Path) -> None:
    create = ("network", "create", "--subnet")
    run.good(*create, "10.7.0.0/24", "blue", "--dns", "192.0.2.53", "--route", "10.9.0.0/16,10.7.0.9")
    run.good(*create, "10.8.0.0/24", "red", "--aux-address", "router=10.8.0.9")
    run.good(*create, "192.0.2.0/24", "lan", "-d", "macvlan", "-o", "parent=lan0")
    run.good("network", "create", "dynamic", "-d", "macvlan", "--ipam-driver", "dhcp", "-o", "parent=lan0")
    said = run("export")
    assert said.code == 0 and set(tomllib.loads(said.out)["network"]) == {"blue", "red", "lan", "dynamic"}
    assert said.err.splitlines() == [
        "weft: network blue is exported without its --dns and --route: no file declares that",
        "weft: network dynamic is exported without its --ipam-driver: no file declares that",
        "weft: network red is exported without its --aux-address: no file declares that",
    ]


def test_a_changed_declaration_changes_what_is_there(run, office: str, tmp_path: Path) -> None:
    run.good("apply", "-f", office)
    text = OFFICE.replace("02:00:00:00:0f:01", "02:00:00:00:0f:02").replace("10.50.0.20/24", "10.50.0.21/24")
    text = text.replace('nat = ["wan"]', "nat = []")
    (tmp_path / "office.toml").write_text(text)
    out = run.good("apply", "-f", office).splitlines()
    assert out == [
        "made switch office",
        "made network shop",  # the address that no container gets
        "removed interface eth0 of printer",
        "made interface eth0 of printer",
        "made source NAT of router edge",
    ]
    assert run.kernel.host.link("office").mac == "02:00:00:00:0f:02"
    printer = run.kernel.open("/run/netns/printer")
    assert [str(one) for one in printer.addresses("eth0", 4)] == ["10.50.0.21/24"]
    assert run.kernel.open("/run/netns/edge").nftables_listing("chain inet weft_router nat_postrouting") == ""


class Fault:
    """Raises before one step: the one of that number."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, verb: str, operation: object) -> None:
        if verb == "apply":
            self.seen += 1
            if self.seen == self.at:
                raise KernelRefused("injected")


@pytest.mark.parametrize("changed", [False, True])
def test_a_fault_before_each_step_changes_nothing(run, office: str, kept: Path, tmp_path: Path, changed: bool) -> None:
    """Also of the steps of the attachments, and where something was there before."""
    if changed:
        run.good("apply", "-f", office)
        text = OFFICE.replace("02:00:00:00:0f:01", "02:00:00:00:0f:02").replace("10.50.0.20/24", "10.50.0.21/24")
        (tmp_path / "office.toml").write_text(text.replace('nat = ["wan"]', "nat = []"))
    before = state(run, kept)
    at = 1
    while True:
        fault = run.service.watch = Fault(at)
        said = run("apply", "-f", office)
        if fault.seen < at:
            break
        assert said.code == 1 and "injected" in said.err, (at, said)
        run.service.watch = lambda verb, operation: None
        now = state(run, kept)
        for place, (mine, theirs) in enumerate(zip(now, before, strict=True)):
            assert mine == theirs, (at, place)
        at += 1
    assert said.code == 0 and at > (5 if changed else 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[swich.a]", "swich is unknown; did you mean switch?"),
        ("[switch]\nmac = 1", "switch has no names"),
        ("[switch.a]\nmack = 'x'", 'switch.a.mack "x" is unknown; did you mean mac?'),
        ("[switch.a]\nmac = '01:00:00:00:00:01'", 'switch.a.mac "01:00:00:00:00:01" is a multicast MAC address'),
        ("[switch.a]\nmtu = 20", "switch.a.mtu 20 must be between 68 and 65535"),
        ("[switch.a]\nvlans = [4095]", "switch.a.vlans [4095] must be a list of numbers from 1 to 4094"),
        ("[switch.a.ports.eth1]\nvlan = 7", "VLAN 7 is not among vlans of the switch a"),
        ("[switch.much_too_long_for_a_link]", "must not be longer than 15 bytes"),
        ("[interface.i]\nnamespace = 'n'\nswitch = 'b'\n[switch.bb]", 'switch "b" is not declared; did you mean bb?'),
        ("[interface.i]\nswitch = 'b'\n[switch.b]", "interface.i.namespace is missing"),
        ("[interface.i]\nnamespace = 'n'", "must have either switch or network"),
        (
            "[interface.i]\nnamespace = 'n'\nswitch = 'b'\naddresses = ['10.1.0.5']\n[switch.b]",
            "is not an address with",
        ),
        (
            TWO_OF_ONE_ADDRESS,
            "address b 10.1.0.5 is i's, too",
        ),
        ("[router.r]\nnat = ['wan']", "names wan, which is no interface of the router"),
        ("[router.r]\nroutes = [{to = '10.0.0.0/8', via = '10.1.0.9'}]", "is in no subnet of the router's interfaces"),
        ("[network.n]\nrouter = 'r'\nswitch = 's'\n[switch.s]", "has no interface on the switch s"),
        ("[network.n]\nswitch = 's'", 'network.n.switch "s" is not declared'),
        ("[network.x]\n[switch.x]", "a switch and a network are both named x"),
        ("[service.s]\nprot = 1", "unknown key prot; did you mean port?"),
        ("[network.n", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigProblem) as error:
        document.read(document.decoded(text, "file"))
    assert message in error.value.message


def text_of(value: str) -> object:
    """What a label's value is read as in YAML."""
    found = document.decoded(f"network: {{a: {{labels: {{k: {value}}}}}}}", "x.yaml")
    return found["network"]["a"]["labels"]["k"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("no", "no"), ("NO", "NO"), ("on", "on"), ("y", "y"), ("true", True), ("False", False), ("'true'", "true"),
        ("1:30", "1:30"), ("10:20:30:40:50:10", "10:20:30:40:50:10"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"),
        ("10", 10), ("-3", -3), ("0o17", 15), ("0x1f", 31), ("1.5", 1.5), ("'010'", "010"), ("0", 0), ("~", None),
        ("10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00::1"),
    ],
)  # fmt: skip
def test_unquoted_text_of_yaml_is_of_version_1_2(value: str, expected: object) -> None:
    found = text_of(value)
    assert (found, type(found)) == (expected, type(expected))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("switch:\n  a: {mtu: 010}", "line 2: 010 is another number in YAML 1.1 than in 1.2"),
        ("switch:\n  a: {mtu: 1}\n  a: {mtu: 2}", "line 3: the key a is given twice"),
        ("switch:\n  a: {}\nswitch:\n  b: {}", "line 3: the key switch is given twice"),
        ("network:\n  a: {internal: yes}", 'network.a.internal "yes"'),
        ("switch:\n  a: {mtu: 1_500}", 'switch.a.mtu "1_500"'),
        ("switch:\n  a: {mack: x}", 'switch.a.mack "x" is unknown; did you mean mac?'),
        ("swich:\n  a: {}", "swich is unknown; did you mean switch?"),
        ("switch: [a]", "switch has no names"),
        ("- switch", "must be a table of switch"),
        ("switch: {a: {}}\n---\nswitch: {b: {}}", "line 2: a second document"),
        ("switch:\n  a: !!python/object/apply:os.system [id]", "line 2: the tag tag:yaml.org,2002:python"),
        ("x: &x {mtu: 1}\nswitch:\n  a: {<<: *x}", "line 3: a merge key"),
        ("switch: &a {b: *a}", "line 1: *a has no anchor"),
        (BOMB, "more than 100000 values"),
        ("switch: " + "[" * 100, "nested more than 64 deep"),
        ("? [a]\n: b", "line 1: a key that is not text"),
        ("switch:\n\ta: {}", "x.yaml is not valid YAML: line 2: found character"),
        ("switch: \x07", "x.yaml is not valid YAML"),
    ],
)
def test_what_is_wrong_in_yaml_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigProblem) as error:
        document.read(document.decoded(text, "x.yaml"))
    assert message in error.value.message


def test_the_language_of_a_file_is_known_without_a_name() -> None:
    for text in (
        "# a switch\n\nswitch:\n  a: {mtu: 1400}",
        "---\nswitch: {a: {mtu: 1400}}",
        '"switch":\n  a:\n    mtu: 1400\n',
        "# a: b\n[switch.a]\nmtu = 1400 # c: d",
        "switch.a = {mtu = 1400}",
        '"switch".a.mtu = 1400',
        '{"switch": {"a": {"mtu": 1400}}}',
    ):
        assert document.decoded(text, "-") == {"switch": {"a": {"mtu": 1400}}}, text
    assert document.decoded("switch:\n  a:\n", "x") == {"switch": {"a": {}}}
    assert document.decoded("", "x.yml") == document.decoded("# nothing\n", "x.yaml") == {}
    with pytest.raises(ConfigProblem, match="x is not valid JSON: the key mtu is given twice"):
        document.decoded('{"switch": {"a": {"mtu": 1, "mtu": 2}}}', "x")


def test_all_problems_are_reported_together(run, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[switch.a]\nmtu = 20\n[network.b]\nsubnet = 'x'\n[interface.c]\nnamespace = 'n'\n")
    said = run("apply", "-f", str(path))
    assert said.code == 1
    for word in ("switch.a.mtu", "network.b.subnet", "did you mean subnets?", "interface.c"):
        assert word in said.err
    assert run.kernel.host.link("a") is None


def test_nothing_is_taken_from_others(run, office: str, tmp_path: Path) -> None:
    run.kernel.host.add_link("office", "bridge")
    said = run("apply", "-f", office)
    assert (said.code, "there is a link office that weft apply has not made" in said.err) == (4, True)
    run.kernel.host.delete_link("office")
    run.good("apply", "-f", office)
    run.container("c1")
    run.good("attach", "shop", "c1")
    (tmp_path / "nothing.toml").write_text("")
    said = run("apply", "-f", str(tmp_path / "nothing.toml"), "--prune")
    assert (said.code, "shop is in use by weft-c1/eth0 on shop" in said.err) == (4, True)
    (tmp_path / "office.toml").write_text(OFFICE.replace('["10.50.0.0/24"]', '["10.50.0.0/23"]'))
    said = run("apply", "-f", office)
    assert (said.code, "would change under weft-c1/eth0" in said.err) == (4, True)
    run.good("detach", "shop", "c1")
    run.good("apply", "-f", str(tmp_path / "nothing.toml"), "--prune")
    assert run.kernel.identify("/run/netns/c1").known  # that namespace is the operator's


def test_a_namespace_that_was_there_is_left(run, tmp_path: Path) -> None:
    run.container("printer")
    path = tmp_path / "one.toml"
    path.write_text("[switch.s]\n[interface.eth5]\nnamespace = 'printer'\nswitch = 's'\n")
    run.good("apply", "-f", str(path))
    assert run.kernel.open("/run/netns/printer").link("eth5") is not None
    path.write_text("")
    run.good("apply", "-f", str(path), "--prune")
    assert run.kernel.identify("/run/netns/printer").known
    assert run.kernel.open("/run/netns/printer").link("eth5") is None


def test_after_a_boot_apply_without_a_file_makes_it_again(run, office: str) -> None:
    run.good("apply", "-f", office)
    for name in ("edge", "printer"):
        run.kernel.remove(f"/run/netns/{name}")
    run.kernel.host.delete_link("office")
    out = run.good("apply").splitlines()
    assert "made switch office" in out and "made namespace edge" in out and "made interface lan of edge" in out
    assert run("diff").code == 0


_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
_values = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KINDS), st.dictionaries(_texts, st.dictionaries(_texts, _values)), max_size=3))
def test_toml_is_read_as_it_was_written(tables) -> None:
    found = tomllib.loads(keeping.toml(tables))
    assert found == {kind: names for kind, names in tables.items() if names}


@given(st.dictionaries(st.sampled_from(KINDS), st.dictionaries(_texts, st.dictionaries(_texts, _values)), max_size=3))
def test_yaml_is_read_as_it_was_written(tables) -> None:
    assert yaml_files.loads(yaml_files.dumps(tables)) == tables


@pytest.mark.parametrize(
    "text", ["no", "010", "1:30", "0o17", "1e3", "~", "", "true", "2026-01-01", "a: b", "- a", "=", "é"]
)
def test_yaml_is_written_so_that_no_reader_takes_text_for_something_else(text: str) -> None:
    assert (
        yaml_files.dumps({"network": {"a": {"k": text}}})
        == f"network:\n  a:\n    k: {json.dumps(text, ensure_ascii=False)}\n"
    )


def test_the_examples_declare_the_same() -> None:
    folder = Path(__file__).resolve().parents[3] / "conf"
    tables = [document.decoded((folder / name).read_text(), name) for name in ("office.toml", "office.yaml")]
    assert tables[0] == tables[1]


def test_the_example_is_valid() -> None:
    path = Path(__file__).resolve().parents[3] / "conf/office.toml"
    found = document.read(document.decoded(path.read_text(), "office.toml"))
    assert {one.name for one in found.services} == {"printing"}
    assert found.services[0].definition["meta"] == {"weft-balance": "round-robin"}
    assert desired.container_of("/run/netns/printer") == "weft-printer"
