"""bin/vm COMMAND… | bin/vm test [--all] [PYTEST ARGUMENT…]"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lab import outcomes
from lab.guest.emulator import Job, run
from lab.guest.image import NoGuest, image

ROOT = Path(__file__).resolve().parents[3]
REPORTS = ROOT / "build" / "outcomes"
SECONDS = 2300.0
"""How long the guest may take for the tests."""
IN_GUEST = "/weft-exchange/reports"

# Emulation takes about forty times as long as the machine itself, so these are few: what the kernel has, and every
# driver once. To them come all tests that the machine's own kernel had to skip.
ALWAYS = (
    "tests/vm",
    "tests/netns/test_conf.py::test_a_conflist_works[dual-stack]",
    "tests/netns/test_conf.py::test_a_conflist_works[loopback]",
    "tests/netns/test_conf.py::test_a_conflist_works[ptp]",
    "tests/netns/test_conf.py::test_a_conflist_works[vlan]",
)
# What a run in the guest has no use for, and what costs it seconds to import.
QUICK = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


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
    """Run tests in the guest, all in one boot and one process."""
    everything = "--all" in arguments
    rest = [argument for argument in arguments if argument != "--all"]
    named = any(not argument.startswith("-") and (ROOT / argument.partition("::")[0]).exists() for argument in rest)
    chosen = [] if named else ["tests/vm", "tests/netns"] if everything else _selection()
    python = str(ROOT / ".venv" / "bin" / "python")
    pytest = (python, "-m", "pytest", *QUICK, *chosen, *rest)
    if not _compile(pytest):
        return 5
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = REPORTS / "vm.json"
    report.unlink(missing_ok=True)
    command = ("tests/private", *pytest, "--outcomes", f"{IN_GUEST}/{report.name}")
    kernel = image()
    seconds = 6 * 3600.0 if everything else SECONDS
    print(f"vm: Linux {kernel.version}", flush=True)
    return run(kernel, Job(command, ROOT, seconds=seconds, reports=REPORTS))


def _selection() -> list[str]:
    """The tests that the netns tier skipped on this machine's kernel, as it reported, and those that always run."""
    found = outcomes.read(REPORTS / "netns.json")
    if not found:
        print("vm: bin/test netns has not been run, so it is not known which tests this kernel skips", file=sys.stderr)
    return list(dict.fromkeys((*ALWAYS, *outcomes.skipped(found))))


def _compile(pytest: tuple[str, ...]) -> bool:
    """Have the bytecode made here, where it takes a second: the guest would compile for minutes.

    False if there are no such tests. Raises NoGuest, with what pytest says, if the tests cannot be collected.
    """
    done = subprocess.run(
        (*pytest, "--collect-only", "-q"), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode not in (0, 5):
        raise NoGuest(f"the tests cannot be collected:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
