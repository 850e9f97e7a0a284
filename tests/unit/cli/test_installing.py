"""weft install --systemd and weft uninstall: what they write, refuse, remove and leave."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cni_plugin.cli import agents
from cni_plugin.entry import installation, units


@pytest.fixture(autouse=True)
def no_daemons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agents, "stop_all", list)
    monkeypatch.setattr(units, "FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(agents, "remove_virtual_addresses", lambda: None)


def test_units_are_written_with_the_path_of_weft_and_removed_again(tmp_path: Path) -> None:
    folder = tmp_path / "systemd"
    written = units.write("/opt/weft/bin/weft", str(folder))
    assert {"weft-agent.service", "weft-engine.service", "weft-engine.socket", "weft-gc.timer"} <= set(written)
    for name in written:
        text = (folder / name).read_text()
        assert "/usr/local/bin" not in text
        assert name.endswith((".socket", ".timer")) or "ExecStart=/opt/weft/bin/weft " in text
    (folder / "weft-own.service").write_text("[Service]\n")  # an operator's
    assert units.remove(str(folder)) == written
    assert [path.name for path in folder.iterdir()] == ["weft-own.service"]


def test_uninstall_is_refused_while_there_are_attachments(run, tmp_path: Path) -> None:
    run.good("network", "create", "blue", "--subnet", "10.7.0.0/24")
    run.container("c1")
    run.good("attach", "blue", "c1")
    refused = run("uninstall")
    assert refused.code == 4 and "weft-c1/eth0" in refused.err and "--keep" in refused.err, refused
    assert "left attachment weft-c1/eth0" in run.good("uninstall", "--keep")
    assert "c1" in run.good("ps")
    run.good("detach", "blue", "c1")
    said = run.good("uninstall")
    assert f"left {run.config}" in said and "attachment" not in said
    assert not [link for link in run.kernel.host.links() if link.name.startswith("weft")]


def test_only_own_plugins_are_removed(run, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("weft", "own"):
        (folder / name).write_text("")
    (folder / "bridge").symlink_to("weft")
    (folder / "macvlan").write_text("of another project")
    assert sorted(installation.remove(str(folder))) == ["bridge", "weft"]
    assert sorted(path.name for path in folder.iterdir()) == ["macvlan", "own"]
    run.good("uninstall", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["macvlan", "own"]


def test_a_folder_without_plugins_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "share" / "weft").mkdir(parents=True)
    (tmp_path / "weft").write_text("a list")
    for folder in (tmp_path / "share", tmp_path):
        assert installation.remove(str(folder)) == []
        assert (folder / "weft").exists()


def test_man_pages_and_completion_are_installed_and_removed(run, tmp_path: Path) -> None:
    folder = tmp_path / "share"
    others = folder / "man/man1"
    others.mkdir(parents=True)
    for name in ("weft-of-others.1", "ls.1"):
        (others / name).write_text('.TH "OTHER" "1"\n')
    said = run.good("install", "--share", str(folder))
    assert f"man pages, completion of bash, zsh, fish, and examples in {folder}/doc/weft/examples" in said
    assert (folder / "doc/weft/examples/weft.conflist").is_file()
    assert ".SH NAME" in (others / "weft-network.1").read_text()
    assert "_WEFT_COMPLETE" in (folder / "zsh/site-functions/_weft").read_text()
    said = run.good("uninstall", str(folder))
    assert said.count("removed ") == 1 and f"removed man pages, completion and examples in {folder}\n" in said
    assert f"weft itself is the checkout {Path(__file__).parents[3]}" in said
    files = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert files == ["ls.1", "weft-of-others.1"] and [path.name for path in folder.iterdir()] == ["man"]


def test_an_own_link_and_no_other_file_is_taken_for_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "bridge").symlink_to("elsewhere")
    assert installation.remove(str(tmp_path)) == []
    assert (tmp_path / "bridge").is_symlink()


def test_an_upgrade_of_the_package_starts_no_unit_that_is_disabled(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "conf/debian/postinst").read_text()
    for path in ("/usr/lib/weft", "/usr/bin/", "/run/systemd/system", "/run/weft"):
        text = text.replace(path, f"{tmp_path}{path}")
    (tmp_path / "usr/lib/weft/package/@VERSION@").mkdir(parents=True)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "$*" >>"${0%/*}/said"\n[ "$3" != weft-gc.timer ]\n')
    systemctl.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-s", "configure"], input=text, text=True, check=True, env=environment)
    said = (tmp_path / "said").read_text().splitlines()
    assert [line for line in said if line.startswith("start ")] == ["start weft-engine.socket"]


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_scripts_of_the_package_are_valid(script: str) -> None:
    path = Path(__file__).parents[3] / "conf" / "debian" / script
    subprocess.run(["sh", "-n", str(path)], check=True)
