"""bin/vm COMMAND… | bin/vm test [--long | --all] [PYTEST ARGUMENT…]"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lab import outcomes
from lab.guest.emulator import Job, run
from lab.guest.image import NoGuest, image
from lab.guest.selection import EVERY, always
from lab.sample import SEED, seed

ROOT = Path(__file__).resolve().parents[3]
REPORTS = ROOT / "build" / "outcomes"
SECONDS = 2300.0
"""Time limit of the tests in the guest, seconds."""
IN_GUEST = "/weft-exchange/reports"

PARTS = 2
"""Test processes, one for each processor of the guest."""
SAMPLE = 12
"""A run of this tier tests faults, kills and CHECK at every twelfth step, --long at every step."""
# Plugins that a run in the guest does not need, and that take seconds to import.
QUICK = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-o", "faulthandler_timeout=1200")


def main(arguments: list[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        if arguments[0] == "test":
            return _test(arguments[1:])
        interactive = all(os.isatty(descriptor) for descriptor in (0, 1, 2))
        return run(image(), Job(arguments, Path.cwd(), interactive=interactive))
    except NoGuest as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _test(arguments: list[str]) -> int:
    """Run tests in one boot of the guest: given ones in one process, otherwise in PARTS processes."""
    everything, long = "--all" in arguments, "--long" in arguments
    rest = [argument for argument in arguments if argument not in ("--all", "--long")]
    named = any(not argument.startswith("-") and (ROOT / argument.partition("::")[0]).exists() for argument in rest)
    chosen = [] if named else ["tests/vm", "tests/netns"] if everything else _selection(long)
    python = str(ROOT / ".venv" / "bin" / "python")
    pytest = (python, "-m", "pytest", *QUICK, *chosen, *rest)
    if not _compile(pytest):
        return 5
    parts = 1 if named else PARTS
    REPORTS.mkdir(parents=True, exist_ok=True)
    reports = [REPORTS / f"vm-{part}.json" for part in range(1, parts + 1)]
    for report in (REPORTS / "vm.json", *reports):
        report.unlink(missing_ok=True)
    command = ("tests/lab/guest/parts.sh", str(parts), f"{IN_GUEST}/vm", *pytest)
    kernel = image()
    seconds = 6 * 3600.0 if everything or long else SECONDS
    environment = {SEED: seed()}
    if not (everything or long or named):
        environment["WEFT_TEST_SAMPLE"] = str(SAMPLE)
    # Python takes seconds to start: executables send their calls to an engine forked from the
    # tests.
    environment["WEFT_TEST_ENGINE"] = "fork"
    print(f"vm: Linux {kernel.version}", flush=True)
    status = run(kernel, Job(command, ROOT, seconds=seconds, environment=environment, reports=REPORTS))
    outcomes.join(REPORTS / "vm.json", reports)
    print(f"vm: {outcomes.summary(outcomes.read(REPORTS / 'vm.json'))}", flush=True)
    return status


def _selection(long: bool) -> list[str]:
    """The tests that the netns tier reported as skipped on this kernel, and those of the table."""
    found = outcomes.read(REPORTS / "netns.json")
    if not found:
        print("vm: bin/test netns has not been run, so it is not known which tests this kernel skips", file=sys.stderr)
    return list(dict.fromkeys((*(EVERY if long else always()), *outcomes.skipped(found))))


def _compile(pytest: tuple[str, ...]) -> bool:
    """Compile the bytecode on this machine, where it takes a second; the guest would take minutes.

    False if there are no such tests. Raises NoGuest with the output of pytest if collection fails.
    """
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = (*pytest, "--collect-only", "-q")
    done = subprocess.run(command, cwd=ROOT, env=writing, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode not in (0, 5):
        raise NoGuest(f"the tests cannot be collected:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
