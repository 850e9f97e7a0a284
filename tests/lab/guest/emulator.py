"""Boot the guest, run one command, stop it: with time limits, and killed if the caller dies."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.guest.image import HERE, Image, NoGuest, cache

PROGRAM = "qemu-system-x86_64"
KVM_SECONDS = 20.0
"""Time limit of the trial boot with KVM, seconds."""
BOOT_SECONDS = 120.0
PASSED_ON = ("TERM", "LANG", "LC_ALL", "HOME", "COLUMNS", "LINES", "PYTEST_ADDOPTS")


class NotBooted(NoGuest):
    """The guest did not reach the command, so it can be tried again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command for the guest. ``reports`` is the only directory that the guest can write to."""

    command: Sequence[str]
    folder: Path
    seconds: float = 1800.0
    interactive: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    reports: Path | None = None

    @property
    def script(self) -> str:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in {**passed, **self.environment}.items()]
        return "\n".join((*lines, f"cd {shlex.quote(str(self.folder))}", f"exec {shlex.join(self.command)}", ""))


def run(image: Image, job: Job) -> int:
    """Run the command in a guest; its exit status. Raises NoGuest if the guest fails or hangs."""
    accelerator = "kvm" if has_kvm(image) else "tcg,thread=multi,tb-size=512"
    try:
        return _boot(image, job, accelerator, BOOT_SECONDS)
    except NotBooted as error:
        print(f"vm: {error}\nvm: once more", file=sys.stderr)
        return _boot(image, job, accelerator, BOOT_SECONDS)


def has_kvm(image: Image) -> bool:
    """Whether a guest boots with KVM; opening /dev/kvm proves nothing.

    Cached until the next boot.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    answer = cache() / "kvm"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError, ValueError):
        known, works = answer.read_text().split()
        if known == boot:
            return works == "yes"
    print("vm: trying whether KVM works here", file=sys.stderr)
    try:
        job = Job(("true",), Path("/"), seconds=KVM_SECONDS)
        works_here = _boot(image, job, "kvm", KVM_SECONDS, errors=subprocess.DEVNULL) == 0
    except NoGuest:
        works_here = False
    answer.write_text(f"{boot} {'yes' if works_here else 'no'}\n")
    return works_here


def _boot(image: Image, job: Job, accelerator: str, boot_seconds: float, errors: int | None = None) -> int:
    if shutil.which(PROGRAM) is None:
        raise NoGuest(f"{PROGRAM} is missing: bin/setup --vm installs it")
    exchange = Path(tempfile.mkdtemp(prefix="weft-vm-"))
    try:
        _fill(exchange, image, job)
        with _Terminal(job.interactive):
            # The kernel kills it if this process ends unexpectedly (PR_SET_PDEATHSIG).
            process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", "--", *_machine(image, exchange, accelerator, job.interactive)),
                stdin=None if job.interactive else subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                _wait(process, exchange, job.seconds, boot_seconds)
            finally:
                process.kill()
                process.wait()
        return _status(exchange, job)
    finally:
        shutil.rmtree(exchange, ignore_errors=True)


def _fill(exchange: Path, image: Image, job: Job) -> None:
    shutil.copy(HERE / "second.sh", exchange)
    (exchange / "command").write_text(job.script)
    settings = {"modules": str(image.modules), "interactive": str(int(job.interactive))}
    (exchange / "settings").write_text("".join(f"{key}={shlex.quote(text)}\n" for key, text in settings.items()))


def _machine(image: Image, exchange: Path, accelerator: str, interactive: bool) -> tuple[str, ...]:
    """Two processors, no network. The emulator exports the machine's files read-only."""
    shared = "security_model=none,multidevs=remap"
    console = "stdio,id=out,signal=off,mux=on" if interactive else "stdio,id=out,signal=off"
    # no_timer_check: the check counts ticks in a busy loop, and fails with a panic under load.
    words = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on audit=0 nokaslr no_timer_check"
    return (
        PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none",
        "-machine", "pc", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "qemu64",
        "-smp", "2", "-m", "2G",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", words,
        "-chardev", f"file,id=log,path={_escaped(exchange / 'console')}", "-serial", "chardev:log",
        "-device", "virtio-serial-pci", "-chardev", console, "-device", "virtconsole,chardev=out",
        "-virtfs", f"local,path=/,mount_tag=machine,readonly=on,{shared}",
        "-virtfs", f"local,path={_escaped(exchange)},mount_tag=exchange,{shared}",
    )  # fmt: skip


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _wait(process: subprocess.Popen[bytes], exchange: Path, seconds: float, boot_seconds: float) -> None:
    """Wait until the emulator exits, or a deadline passes."""
    start = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            return
        passed = time.monotonic() - start
        if (exchange / "status").exists():
            # The command has ended; only the power-off is left.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            return
        if passed > boot_seconds and not (exchange / "booted").exists():
            raise NotBooted(f"the guest did not boot within {boot_seconds:.0f} s{_last_words(exchange)}")
        if passed > seconds:
            raise NoGuest(f"the command took longer than {seconds:.0f} s{_last_words(exchange)}")


def _status(exchange: Path, job: Job) -> int:
    try:
        status = int((exchange / "status").read_text())
    except (OSError, ValueError):
        problem = NoGuest if (exchange / "booted").exists() else NotBooted
        raise problem(f"the guest ended without an answer{_last_words(exchange)}") from None
    if job.reports is not None:
        for path in (exchange / "reports").glob("*"):
            shutil.copyfile(path, job.reports / path.name, follow_symlinks=False)
    return status


def _last_words(exchange: Path) -> str:
    try:
        lines = (exchange / "console").read_text(errors="replace").splitlines()[-20:]
    except OSError:
        return ""
    return "".join(f"\n  guest: {line}" for line in lines)


class _Terminal:
    """Restores the terminal settings that the emulator changes, even if it is killed."""

    def __init__(self, interactive: bool) -> None:
        self._interactive = interactive

    def __enter__(self) -> None:
        if self._interactive:
            import termios  # only needed if stdin is a terminal

            self._kept = termios.tcgetattr(0)

    def __exit__(self, *problem: object) -> None:
        if self._interactive:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._kept)
