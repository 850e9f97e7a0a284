"""Starts weft's agent for a client's tests; copied next to them as weft_agent.py. Called as a script,
it runs a command meanwhile.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

CONFIG = """
[agent]
node = "client-tests"
data = "{folder}/data"
[http]
listen = ["127.0.0.1:8500"]
{writers}
[dns]
enabled = false
[checks]
scripts = true
[balancer]
enabled = false
"""


WRITERS = 'writers = ["root", "postgres"]'
MANAGEMENT = "5b7a1f0e-4c1d-4a57-9a0e-6d3f0c2b9e11"
"""The secret of the token that may do everything, with ACLS."""
ACLS = f"""
[acl]
enabled = true
tokens.initial_management = "{MANAGEMENT}"
"""


class Agent:
    """An agent at 127.0.0.1:8500 with its catalog in a folder. ``weft`` is the executable of another
    release, which may not know ``writers``; ``acls``: with tokens.
    """

    def __init__(self, folder: pathlib.Path, weft: str = "", acls: bool = False) -> None:
        self._weft = weft or os.environ["WEFT"]
        folder.mkdir(exist_ok=True)
        self._config = folder / "weft.toml"
        writers = WRITERS * (not acls and not weft)
        self._config.write_text(CONFIG.format(folder=folder, writers=writers) + ACLS * acls)
        self._log = folder / "log"
        self._process = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with open(self._log, "ab") as log:
            command = [self._weft, "agent", "--config", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen("http://127.0.0.1:8500/v1/status/leader", timeout=5) as reply:
                    if reply.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"the agent does not serve: {self._log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)


@contextlib.contextmanager
def running(acls: bool = False):
    """An agent with an empty catalog; ``acls``: with tokens."""
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(pathlib.Path(folder) / "weft", acls=acls)
        try:
            agent.start()
            yield agent
        finally:
            agent.stop()


if __name__ == "__main__":
    with running():
        sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
