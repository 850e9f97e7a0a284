"""The operator's weft.toml gets one section, and has its own bytes again afterwards."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import weft_toml
from weft.errors import ConfigProblem, Conflict

FOLDER = "/etc/weft/etcd"
OWN = ["", "# mine\n", '[agent]\nnode = "n1"', '[agent]\nnode = "n1"\n\n', "\n\n", "[http]\nlisten = []\n# end\n"]


@settings(deadline=None, max_examples=60)
@given(text=st.sampled_from(OWN))
def test_what_the_operator_wrote_stays(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("toml") / "weft.toml"
    path.write_text(text)
    for _ in range(2):  # again changes nothing
        weft_toml.add(str(path), FOLDER)
        assert path.read_text().startswith(text)
        assert tomllib.loads(path.read_text())["store"] == {"cluster": FOLDER}
        assert path.read_text().count("[store]") == 1
    weft_toml.remove(str(path), FOLDER)
    assert path.read_text().rstrip("\n") == text.rstrip("\n")
    weft_toml.remove(str(path), FOLDER)


def test_a_file_is_made_and_its_mode_kept(tmp_path: Path) -> None:
    path = tmp_path / "weft" / "weft.toml"
    weft_toml.add(str(path), FOLDER)
    assert path.stat().st_mode & 0o777 == 0o644
    os.chmod(path, 0o640)
    weft_toml.remove(str(path), FOLDER)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("", 0o640)


def test_what_was_written_after_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "weft.toml"
    path.write_text("# a\n")
    weft_toml.add(str(path), FOLDER)
    path.write_text(path.read_text() + "[dns]\nenabled = false\n")
    weft_toml.remove(str(path), FOLDER)
    assert tomllib.loads(path.read_text()) == {"dns": {"enabled": False}}


def test_another_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weft.toml"
    path.write_text('[store]\nendpoints = ["http://10.0.0.1:2379"]\n')
    with pytest.raises(Conflict, match=r"has a section \[store\] already"):
        weft_toml.add(str(path), FOLDER)
    before = path.read_text()
    weft_toml.remove(str(path), FOLDER)
    assert path.read_text() == before
    path.write_text("[agent\n")
    with pytest.raises(ConfigProblem, match="cannot read"):
        weft_toml.add(str(path), FOLDER)
