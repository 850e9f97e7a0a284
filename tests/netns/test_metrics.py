"""The agent's metrics as a real Prometheus reads them, and the rules and the dashboard of conf/prometheus."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lab import seen
from lab.commands import Outcome, run
from lab.confs import SUBNET, bridge, pool
from lab.host import Host
from lab.plugins import ROOT, Cni
from lab.unpacked import unpack
from lab.waiting import until

CONF = ROOT / "conf/prometheus"
_METRIC = re.compile(r"\bweft_[a-z_]+")


def weft(*words: str) -> Outcome:
    return run(str(ROOT / "bin/weft"), *words, environment={"PATH": os.environ["PATH"]}, timeout=120)


@pytest.fixture(scope="module")
def prometheus() -> Path:
    """The folder with prometheus and promtool, of Debian; tests/conformance/test_prometheus.py downloads it."""
    try:
        return unpack("prometheus") / "usr/bin"
    except AssertionError as error:
        pytest.skip(f"Debian's prometheus is not unpacked, and cannot be downloaded here: {str(error)[-200:]}")


@pytest.fixture
def agent(host: Host) -> Iterator[None]:
    weft("up")
    yield
    weft("down", "--services")


def get(port: int, path: str) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        reply = connection.getresponse()
        text = reply.read().decode()
        assert reply.status == 200, (path, reply.status, text)
        return text


def query(expression: str) -> list[Any]:
    found: list[Any] = json.loads(get(9090, f"/api/v1/query?query={quote(expression)}"))["data"]["result"]
    return found


def test_prometheus_reads_them(host: Host, cni: Cni, prometheus: Path, agent: None) -> None:
    conf = {**bridge(pool(SUBNET)), "name": "measured", "isGateway": True}
    folder = Path("/etc/cni/net.d")
    folder.mkdir(exist_ok=True)
    (folder / "measured.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "measured", "plugins": [conf]})
    )
    netns = host.container()
    try:
        cni.add(conf, netns, container="c1")
        seen.problem(cni, "ADD", conf, netns, container="c1")
        text = get(8500, "/metrics")
        assert text == text.strip() + "\n" and "# TYPE weft_calls_total counter" in text
        run(str(prometheus / "promtool"), "check", "metrics", stdin=text, check=False)
        work = Path("/run/prometheus")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for path in CONF.iterdir():
            shutil.copy(path, work)
        quick = (work / "prometheus.yml").read_text().replace("15s", "1s")
        (work / "prometheus.yml").write_text(quick)
        run(str(prometheus / "promtool"), "check", "config", str(work / "prometheus.yml"))
        host.start(
            str(prometheus / "prometheus"), f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data",
            "--web.listen-address=127.0.0.1:9090",
        )  # fmt: skip

        def scraped() -> bool:
            try:
                return bool(query("weft_attachments"))
            except (OSError, AssertionError):  # it starts
                return False

        until(scraped, 120.0, "the first scrape")
        [attached] = query('weft_attachments{network="measured"}')
        assert (attached["metric"]["driver"], attached["value"][1]) == ("bridge", "1")
        assert [one["value"][1] for one in query('weft_calls_total{command="add",code="0"}')] == ["1"]
        assert [one["value"][1] for one in query('weft_calls_total{command="add",code!="0"}')] == ["1"]
        assert [one["value"][1] for one in query('weft_call_seconds_count{command="add"}')] == ["2"]
        [fill] = query('weft_pool_used_addresses{network="measured"} / weft_pool_addresses')
        assert 0 < float(fill["value"][1]) < 0.1
        [sent] = query('weft_network_packets_total{network="measured",direction="sent"}')
        assert int(sent["value"][1]) > 0  # neighbour discovery of the container
        assert query("weft_conntrack_limit") and query('weft_daemon_starts_total{daemon="agent"}')
        rules = json.loads(get(9090, "/api/v1/rules"))["data"]["groups"][0]["rules"]
        assert {one["health"] for one in rules} <= {"ok", "unknown"} and len(rules) >= 10
    finally:
        (folder / "measured.conflist").unlink()


def test_every_metric_of_rules_and_dashboard_exists(host: Host, agent: None, prometheus: Path) -> None:
    text = get(8500, "/metrics")
    known = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    board = json.loads((CONF / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for one in (*expressions, (CONF / "weft.rules.yml").read_text()) for name in _METRIC.findall(one)}
    missing = {name for name in named if name not in known and re.sub("_(bucket|sum|count)$", "", name) not in known}
    assert named and not missing
    assert run(str(prometheus / "promtool"), "check", "rules", str(CONF / "weft.rules.yml")).code == 0
