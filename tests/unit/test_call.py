"""The executable prints one JSON document on stdout, or one line on stderr, whatever fails.

Tests of file descriptors and signals run real processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from cni_plugin.entry import cni
from cni_plugin.wire.request import Command, Request
from weft import __version__
from weft.errors import Conflict
from weft.types import Result, ResultAddress, Route

ROOT = Path(__file__).resolve().parents[2]
GOOD = b'{"cniVersion":"0.4.0","name":"n","type":"bridge"}'
ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0"}
RESULT = Result(ips=(ResultAddress(ip_interface("10.1.0.5/24")),))

LAUNCHER = f"""
import os, sys, types
sys.path.insert(0, {str(ROOT)!r})
service = types.ModuleType("cni_plugin.service.verbs")
sys.modules["cni_plugin.service.verbs"] = service
releases = types.ModuleType("weft.releases")
releases.supersede = lambda folder: None  # writes to the machine's /run
sys.modules["weft.releases"] = releases
BODY
from cni_plugin.entry.call import main
sys.exit(main())
"""
ANSWER = """
def handle(request):
    from weft.types import Result
    sys.stderr.write("asked\\n")
    return Result()
service.handle = handle
"""

Launch = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start the executable under a plugin's name; ``body`` defines ``service.handle``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        body: str = ANSWER, *, name: str = "bridge", environ: dict[str, str] | None = None, **options: object
    ) -> subprocess.Popen[bytes]:
        path = tmp_path / name
        path.write_text(LAUNCHER.replace("BODY", body))
        pipes: dict[str, object] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-IBS", str(path)], env=ENVIRON if environ is None else environ, **(pipes | options)
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def document(text: bytes) -> dict[str, object]:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


# cni.run, called in this process


def test_a_result_is_printed_in_the_version_asked_for() -> None:
    seen: list[Request] = []

    def handle(request: Request) -> Result:
        seen.append(request)
        return RESULT

    environ = ENVIRON | {"CNI_ARGS": "IgnoreUnknown=1;A=b", "OTHER": "x", "CNI_PATH": "/a:/b"}
    status, answer = cni.run("bridge", environ, GOOD, handle)
    assert status == 0
    assert document(answer) == {
        "cniVersion": "0.4.0",
        "ips": [{"version": "4", "address": "10.1.0.5/24"}],
        "dns": {},
    }
    (request,) = seen
    assert (request.command, request.plugin, request.container) == (Command.ADD, "bridge", "c")
    assert (request.namespace, request.interface, request.path) == ("/run/netns/a", "eth0", ("/a", "/b"))
    assert (request.arguments["A"], request.environment["OTHER"], request.stdin) == ("b", "x", GOOD)
    assert request.config.name == "n"


@pytest.mark.parametrize("command", ["DEL", "CHECK"])
def test_a_call_without_a_result_prints_nothing(command: str) -> None:
    assert cni.run("bridge", ENVIRON | {"CNI_COMMAND": command}, GOOD, lambda request: None) == (0, b"")


def failing(error: BaseException) -> dict[str, object]:
    def handle(_: Request) -> Result:
        raise error

    status, answer = cni.run("bridge", ENVIRON, GOOD, handle)
    assert status == 1
    value = document(answer)
    assert value["cniVersion"] == "0.4.0"
    return value


def test_an_error_keeps_its_cni_code() -> None:
    value = failing(Conflict("taken", hint="choose"))
    assert (value["code"], value["msg"], value["details"]) == (101, "taken", "choose")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("x"), "internal error: KeyError: 'x'"),
        (ValueError(), "internal error: ValueError"),
        (AssertionError("a\nb" * 1_000), "internal error: AssertionError: a b"),
        (RecursionError(), "recursion limit exceeded"),
        (MemoryError(), "out of memory"),
        (SystemExit(0), "internal error: SystemExit"),
        (GeneratorExit(), "internal error: GeneratorExit"),
        (OSError(5, "Input/output error"), "internal error: OSError"),
        (ExceptionGroup("two", [ValueError("a")]), "internal error: ExceptionGroup"),
    ],
)
def test_unexpected_exceptions_are_code_999(
    error: BaseException, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    value = failing(error)
    assert value["code"] == 999
    assert sentence in str(value["msg"])
    assert len(str(value["msg"])) < 300
    assert "\n" not in str(value["msg"])
    assert capfd.readouterr() == ("", "")


def test_a_recursion_error_is_code_999() -> None:
    def handle(request: Request) -> Result:
        return handle(request)

    status, answer = cni.run("bridge", ENVIRON, GOOD, handle)
    assert (status, document(answer)["code"]) == (1, 999)


def test_an_interrupted_call_is_code_11_try_again_later() -> None:
    assert failing(KeyboardInterrupt())["code"] == 11
    value = failing(cni.Interrupted("terminated by SIGTERM"))
    assert (value["code"], value["msg"]) == (11, "terminated by SIGTERM before the call was finished")


def test_an_exception_whose_str_fails_is_code_999() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def handle(_: Request) -> Result:
        raise Mute

    status, answer = cni.run("bridge", ENVIRON, GOOD, handle)
    assert (status, document(answer)["code"]) == (1, 999)


def test_a_result_without_a_form_in_the_requested_version_is_an_error() -> None:
    status, answer = cni.run("bridge", ENVIRON, b'{"cniVersion":"0.2.0","name":"n"}', lambda request: Result())
    assert (status, document(answer)["code"], document(answer)["cniVersion"]) == (1, 1, "0.2.0")


def test_a_traceback_only_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    def handle(_: Request) -> Result:
        raise KeyError("x")

    cni.run("bridge", ENVIRON | {"WEFT_DEBUG": "1"}, GOOD, handle)
    said = capfd.readouterr()
    assert said.out == ""
    assert "Traceback" in said.err
    assert "KeyError: 'x'" in said.err


def test_version_needs_no_other_variable() -> None:
    environ = {"CNI_COMMAND": "VERSION", "CNI_IFNAME": "eth%d"}
    status, answer = cni.run("bridge", environ, b'{"cniVersion":"1.0.0"}', lambda request: None)
    assert (status, document(answer)["cniVersion"]) == (0, "1.0.0")


@pytest.mark.parametrize("stdin", [b"", b"{", b"\xff", b" " * (1 << 21)])
def test_version_ignores_invalid_standard_input(stdin: bytes) -> None:
    status, answer = cni.run("bridge", {"CNI_COMMAND": "VERSION"}, stdin, lambda request: None)
    assert (status, document(answer)["cniVersion"]) == (0, "1.1.0")


# Real processes

REPORT = """
import atexit
atexit.register(lambda: os.write(2, (chr(10) + " ".join(sys.modules)).encode()))
"""
HEAVY = {"pyroute2", "ctypes", "click", "dataclasses", "json", "re", "enum", "typing", "collections", "signal"}


def test_a_call_without_cni_command_prints_about(launch: Launch) -> None:
    out, err = launch(REPORT, environ={}, stdin=subprocess.DEVNULL).communicate()
    lines = err.decode().split("\n")
    assert out == b""
    assert lines[0] == f"CNI bridge plugin v1.9.1+weft.{__version__}"
    assert lines[1].startswith("CNI protocol versions supported: 0.1.0, ")
    assert not HEAVY & set(lines[-1].split())
    out, err = launch(name="weft", environ={"CNI_COMMAND": ""}).communicate()
    assert err.decode().startswith(f"CNI weft plugin v{__version__}\n")


def test_version_imports_few_modules(launch: Launch) -> None:
    process = launch(REPORT, environ={"CNI_COMMAND": "VERSION"})
    out, err = process.communicate(b'{"cniVersion":"0.4.0"}')
    assert process.returncode == 0
    assert document(out)["cniVersion"] == "0.4.0"
    loaded = set(err.decode().split())
    assert "cni_plugin.entry.cni" in loaded
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith(("cni_plugin.", "weft"))} <= {
        "cni_plugin.entry",
        "cni_plugin.entry.call",
        "cni_plugin.entry.cni",
        "cni_plugin.service",
        "cni_plugin.service.verbs",  # the launcher's own
        "cni_plugin.wire",
        "cni_plugin.wire.channel",
        "cni_plugin.wire.failure",
        "cni_plugin.wire.plugins",
        "cni_plugin.wire.probe",
        "cni_plugin.wire.versions",
        "weft",
        "weft.errors",
        "weft.releases",  # the launcher's own
        "weft.stderr",
    }


def test_version_does_not_wait_for_a_pipe_that_stays_open(launch: Launch) -> None:
    process = launch(environ={"CNI_COMMAND": "VERSION"})
    assert process.wait(timeout=20) == 0
    assert process.stdout is not None
    assert document(process.stdout.read())["cniVersion"] == "1.1.0"


def test_prints_by_the_service_do_not_reach_standard_output(launch: Launch) -> None:
    body = """
def handle(request):
    from weft.types import Result
    print("printed", flush=True)
    os.write(1, b"written")
    os.system("echo from a child")
    sys.__stdout__.write("left in the buffer")
    return Result()
service.handle = handle
"""
    process = launch(body)
    out, err = process.communicate(GOOD)
    assert process.returncode == 0
    assert document(out) == {"cniVersion": "0.4.0", "dns": {}}
    for text in (b"printed", b"written", b"from a child", b"left in the buffer"):
        assert text in err


def test_a_failed_import_of_the_service_is_an_error_object(launch: Launch) -> None:
    process = launch("")
    out, _ = process.communicate(GOOD)
    assert (process.returncode, document(out)["code"]) == (1, 999)


SLEEP = """
def handle(request):
    import time
    try:
        sys.stderr.write("ready\\n")
        sys.stderr.flush()
        time.sleep(30)
    finally:
        os.kill(os.getpid(), NUMBER)
        time.sleep(0.05)
        sys.stderr.write("undone\\n")
service.handle = handle
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_aborts_the_call_and_runs_its_cleanup(launch: Launch, number: signal.Signals) -> None:
    process = launch(SLEEP.replace("NUMBER", str(int(number))))
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(GOOD)
    process.stdin.close()
    process.stdin = None
    assert process.stderr.readline() == b"ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert (document(out)["code"], document(out)["cniVersion"]) == (11, "0.4.0")
    assert number.name in str(document(out)["msg"])
    assert err == b"undone\n"


def test_a_signal_while_reading_standard_input(launch: Launch) -> None:
    process = launch("sys.stderr.write('ready'); sys.stderr.flush()\n" + ANSWER)
    assert process.stderr is not None
    assert process.stderr.read(5) == b"ready"
    deadline = time.monotonic() + 20
    while not caught(process.pid, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, document(out)["code"]) == (1, 11)


def caught(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal: SigCgt in /proc/PID/status."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_closed_standard_output_fails_before_the_service_is_called(launch: Launch) -> None:
    process = launch(stdout=None, preexec_fn=lambda: os.close(1))
    _, err = process.communicate(GOOD)
    assert process.returncode == 1
    assert err == b"weft: standard output is closed\n"


def test_enospc_on_standard_output_is_reported(launch: Launch) -> None:
    with open("/dev/full", "wb") as full:
        process = launch(stdout=full)
        _, err = process.communicate(GOOD)
    assert process.returncode == 1
    assert err == b"asked\nweft: cannot write to standard output: No space left on device\n"


def test_a_broken_pipe_on_standard_output_is_reported(launch: Launch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = launch(stdout=writing)
    os.close(writing)
    _, err = process.communicate(GOOD)
    assert process.returncode == 1
    assert b"cannot write to standard output: Broken pipe" in err


def test_a_slow_reader_receives_the_whole_document(launch: Launch) -> None:
    body = """
def handle(request):
    from weft.types import Result, Route
    from ipaddress import ip_network
    return Result(routes=(Route(ip_network("10.0.0.0/8")),) * 5_000)
service.handle = handle
"""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = launch(body, stdout=writing)
    os.close(writing)
    assert process.stdin is not None
    process.stdin.write(GOOD)
    process.stdin.close()
    process.stdin = None
    time.sleep(0.3)
    with open(reading, "rb") as reader:
        out = reader.read()
    assert process.wait(timeout=20) == 0
    assert len(out) > 1 << 17
    expected = Result(routes=(Route(ip_network("10.0.0.0/8")),) * 5_000)
    assert cni.run("bridge", ENVIRON, GOOD, lambda request: expected) == (0, out)


def test_closed_standard_error_changes_nothing(launch: Launch) -> None:
    process = launch("", stderr=None, preexec_fn=lambda: os.close(2))
    out, _ = process.communicate(GOOD)
    assert (process.returncode, document(out)["code"]) == (1, 999)


def test_closed_standard_input_is_read_as_empty(launch: Launch) -> None:
    process = launch(stdin=None, preexec_fn=lambda: os.close(0))
    out, err = process.communicate()
    assert (process.returncode, document(out)["code"], err) == (1, 6, b"")


def test_all_three_descriptors_closed(launch: Launch) -> None:
    process = launch(stdin=None, stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3))
    assert process.wait(timeout=20) == 1


def test_a_terminal_is_not_read_as_configuration(launch: Launch) -> None:
    controlling, terminal = os.openpty()
    process = launch(stdin=terminal)
    out, _ = process.communicate(timeout=20)
    os.close(controlling)
    os.close(terminal)
    assert (process.returncode, document(out)["code"]) == (1, 5)


def test_standard_input_of_100_mb_is_refused_without_reading_it_all(launch: Launch) -> None:
    body = (
        ANSWER
        + """
import atexit
def peak():
    # Not ru_maxrss: that one still counts the memory of the process that forked this one.
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("VmHWM"))
atexit.register(lambda: os.write(2, peak().encode()))
"""
    )
    process = launch(body)
    out, err = process.communicate(GOOD + b" " * 100_000_000)
    assert (process.returncode, document(out)["code"]) == (1, 6)
    assert "1048576 bytes" in str(document(out)["msg"])
    assert int(err) < 60 * 1024  # limit of memory, KiB


LOGGED = """
def handle(request):
    from ipaddress import ip_interface
    from weft.types import Result, ResultAddress
    return Result(ips=(ResultAddress(ip_interface("10.1.0.5/24")),))
service.handle = handle
"""


@pytest.mark.parametrize("level", ["info", "debug", "INFO"])
def test_requests_are_logged_if_the_environment_enables_it(launch: Launch, level: str) -> None:
    _, err = launch(LOGGED, environ=ENVIRON | {"WEFT_LOG": level}).communicate(GOOD)
    assert re.fullmatch(rb"ADD c/eth0 on n: 10\.1\.0\.5/24, [0-9.]+ ms\n", err)


@pytest.mark.parametrize("level", ["", "off", "verbose"])
def test_requests_are_not_logged_by_default(launch: Launch, level: str) -> None:
    _, err = launch(LOGGED, environ=ENVIRON | {"WEFT_LOG": level}).communicate(GOOD)
    assert err == b""


def test_a_failed_request_is_logged_with_its_error() -> None:
    lines: list[str] = []

    def handle(request: Request) -> Result:
        raise Conflict("c/eth0 is already attached")

    assert cni.run("bridge", ENVIRON, GOOD, handle, lines.append)[0] == 1
    assert cni.run("bridge", ENVIRON, b"{", handle, lines.append)[0] == 1
    assert len(lines) == 2
    assert lines[0].startswith("ADD c/eth0 on n: {") and "c/eth0 is already attached" in lines[0]
    assert lines[1].startswith("ADD c/eth0: {")
