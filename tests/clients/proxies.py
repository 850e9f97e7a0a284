"""HAProxy and nginx find 60 instances of a service by SRV records of weft's DNS, and follow them.

Run by run.py in private namespaces. HAProxy is this machine's; nginx has ``server ... service=`` since
1.27.3, so it runs in the Debian sid root of the conformance tier.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import weft_agent

from lab import roots

COUNT, FIRST = 60, 20001
PROXY = 18080
HAPROXY = """
global
    stats socket {folder}/haproxy.sock
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
resolvers weft
    nameserver weft 127.0.0.1:8600
    accepted_payload_size 8192
    hold valid 1s
    timeout resolve 1s
    timeout retry 1s
backend web
    balance roundrobin
    server-template web {count} _web._tcp.service.consul resolvers weft resolve-opts allow-dup-ip init-addr none
frontend proxy
    bind 127.0.0.1:{proxy}
    default_backend web
"""
NGINX = """
error_log /tmp/error.log;
pid /tmp/nginx.pid;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    resolver 127.0.0.1:8600 valid=1s ipv6=off;
    resolver_timeout 2s;
    upstream web {{
        zone web 1m;
        server service.consul service=web resolve;
    }}
    server {{
        listen 127.0.0.1:{proxy};
        location / {{ proxy_pass http://web; }}
    }}
}}
"""


class Instance(http.server.BaseHTTPRequestHandler):
    """Answers with its port."""

    def do_GET(self) -> None:
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def call(method: str, path: str, body: object = None) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:8500/v1/{path}", method=method)
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=10) as reply:
        return bytes(reply.read())


def answered() -> str:
    """The port of the instance that a request through the proxy reached, or the error."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PROXY}/", timeout=10) as reply:
            return str(reply.read().decode())
    except OSError as error:
        return str(error)


def reached(requests: int = 4 * COUNT) -> Counter[str]:
    return Counter(answered() for _ in range(requests))


def until(test: Callable[[], bool], seconds: float = 60) -> float:
    """Wait for a condition; the seconds it took."""
    begun = time.monotonic()
    while not test():
        assert time.monotonic() - begun < seconds, "the condition did not become true"
        time.sleep(0.1)
    return time.monotonic() - begun


def follow(name: str) -> None:
    """All instances are reached, without one error; one that leaves is not, and is again after it is back."""
    ports = {str(FIRST + number) for number in range(COUNT)}
    until(lambda: set(reached()) == ports)
    found = Counter[str]()
    for _ in range(20):
        found += reached(COUNT)
        time.sleep(0.2)
    assert set(found) == ports, found
    gone = str(FIRST + 7)
    call("PUT", f"agent/service/deregister/web-{gone}")
    left = until(lambda: set(reached()) == ports - {gone})
    register(int(gone))
    back = until(lambda: set(reached()) == ports)
    print(
        f"{name}: {COUNT} instances reached, {found.total()} requests without an error in 20 looks; "
        f"one left within {left:.1f} s and was back within {back:.1f} s",
        flush=True,
    )


def register(port: int) -> None:
    call("PUT", "agent/service/register", {"Name": "web", "ID": f"web-{port}", "Address": "127.0.0.1", "Port": port})


@contextlib.contextmanager
def haproxy(folder: Path) -> Iterator[str]:
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(folder=folder, count=COUNT, proxy=PROXY))
    version = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    process = subprocess.Popen(["haproxy", "-db", "-f", config])
    try:
        yield f"HAProxy {version}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[str]:
    below, top, work = Path(os.environ["NGINX_ROOT"]), folder / "top", folder / "work"
    work.mkdir()
    (top / "tmp").mkdir(parents=True)
    (top / "etc").mkdir()
    (top / "etc" / "weft-nginx.conf").write_text(NGINX.format(proxy=PROXY))
    version = subprocess.run(["chroot", below, "/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True)
    process = roots.start(
        (below,), top, work, "/usr/sbin/nginx", "-e", "/tmp/error.log", "-c", "/etc/weft-nginx.conf",
        "-g", "daemon off; user root;",
    )  # fmt: skip
    try:
        yield f"nginx {version.stderr.rpartition('/')[2].strip()}"
    except BaseException:
        print((top / "tmp" / "error.log").read_text()[-2000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    servers = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weft_agent.CONFIG = weft_agent.CONFIG.replace("[dns]\nenabled = false", '[dns]\nlisten = ["127.0.0.1:8600"]')
        agent = weft_agent.Agent(folder / "weft")
        agent.start()
        try:
            for number in range(COUNT):
                server = http.server.ThreadingHTTPServer(("127.0.0.1", FIRST + number), Instance)
                server.request_queue_size = socket.SOMAXCONN
                threading.Thread(target=server.serve_forever, daemon=True).start()
                servers.append(server)
                register(FIRST + number)
            for proxy in (haproxy, nginx) if os.environ.get("NGINX_ROOT") else (haproxy,):
                with proxy(folder) as version:
                    follow(version)
        finally:
            agent.stop()
        shutil.rmtree(folder / "top", ignore_errors=True)


if __name__ == "__main__":
    main()
