"""The events' file: lines, who asked, rotation, filters."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from cni_plugin.cli.root import weft
from weft import events

RUN = "/run/weft/4711"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(events, "FOLDER", str(tmp_path / "log"))
    monkeypatch.setattr(events, "JOURNAL", str(tmp_path / "journal"))
    return tmp_path / "log"


def test_events_are_read_as_they_were_recorded(folder: Path) -> None:
    hostile = 'quote " back\\slash \n line \x1b[31m é \ud800'
    events.record(
        RUN, "add", {"network": "blue", "container": hostile, "ms": 4.1, "code": 7, "error": "", "long": "x" * 999}
    )
    events.record("/run/weft/4712", "add", {"network": "other"})
    events.record("/tmp/of-a-test", "add", {"network": "none"})
    [found] = events.read(netns=4711)
    assert (found["container"], found["ms"], found["code"], found["event"]) == (hostile, 4.1, 7, "add")
    assert "error" not in found and len(str(found["long"])) == 500
    assert len(list(events.read())) == 2 and not list(events.read(since=9e9))
    assert (folder.stat().st_mode & 0o777, (folder / "events.log").stat().st_mode & 0o777) == (0o700, 0o600)
    with open(folder / "events.log", "a") as file:
        file.write('{"time": 1, "cut of')  # the host crashed
    assert len(list(events.read())) == 2


def test_full_files_are_rotated_and_no_event_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_BYTES", 20_000)

    def write(name: str) -> None:
        for number in range(100):
            events.record(RUN, "add", {"container": name, "number": number})

    threads = [threading.Thread(target=write, args=(f"t{one}",)) for one in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(path.name for path in folder.iterdir()) == ["events.log", "events.log.1"]
    seen = [(one["container"], one["number"]) for one in events.read()]
    assert len(seen) == len(set(seen)) and {f"t{one}" for one in range(4)} == {name for name, _ in seen}
    for name in ("t0", "t1", "t2", "t3"):
        numbers = [number for each, number in seen if each == name]
        assert numbers == sorted(numbers) and numbers[-1] == 99  # the newest are there
    assert max(path.stat().st_size for path in folder.iterdir()) < 25_000


def test_a_folder_that_cannot_be_written_harms_nobody(folder: Path) -> None:
    folder.write_text("a file")
    events.record(RUN, "add", {"network": "blue"})
    assert list(events.read()) == []


def test_who_asked() -> None:
    assert events.asker(0) == f"weft[{os.getpid()}]"
    parent = os.getppid()
    name = Path(f"/proc/{parent}/comm").read_text().strip()
    assert events.asker(os.getpid()) == f"{name}[{parent}]"
    assert events.asker(2**22 + 1) == ""


def test_sentences() -> None:
    event = {"time": 1, "netns": 2, "event": "add", "network": "blue", "container": "c", "interface": "eth0"}
    more = {"addresses": "10.0.0.2/24", "ms": 4.1, "by": "podman[7]"}
    assert events.sentence({**event, **more}) == "add c/eth0 on blue: 10.0.0.2/24, 4.1 ms, by podman[7]"
    assert events.sentence({"event": "repair", "changes": 3}) == "repair: changes 3"
    assert events.sentence({"event": "log", "source": "agent", "level": "INFO", "message": "m"}) == "agent INFO: m"


def test_events_are_filtered() -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    run = f"/run/weft/{own}"
    events.record(run, "add", {"network": "blue", "container": "0123456789ab", "by": "podman[7]", "ms": 1.0})
    events.record(run, "add", {"network": "green", "container": "c2", "by": "weft[8]", "ms": 1.0})
    events.record(run, "log", {"source": "agent", "level": "INFO", "message": "hello"})

    def lines(*words: str) -> list[str]:
        result = CliRunner().invoke(weft, list(words))
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    assert len(lines("events")) == 2
    assert len(lines("events", "--filter", "network=blue", "--filter", "network=green")) == 2
    [line] = lines("events", "--filter", "by=podman", "--filter", "container=0123", "--json")
    assert json.loads(line)["network"] == "blue"
    assert lines("events", "--filter", "network=blu") == []
    assert lines("events", "--since", "2999-01-01T00:00:00") == []
    assert len(lines("events", "--since", "1h")) == 2
    [line] = lines("logs")
    assert line.endswith(" agent INFO: hello")
    for words in (("events", "--since", "soon"), ("events", "--filter", "blue")):
        assert CliRunner().invoke(weft, list(words)).exit_code != 0
