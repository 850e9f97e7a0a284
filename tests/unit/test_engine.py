"""The protocol of client and engine, and when an engine is replaced.

Needs no socket and no root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.engine import code, main
from cni_plugin.entry import build
from cni_plugin.wire import frame, probe, versions
from weft import __version__, stderr
from weft.errors import StateDamaged
from weft.version import newer

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=20)
NAMES = st.from_regex(r"CNI_[A-Z_]{1,10}", fullmatch=True)


@pytest.mark.parametrize(
    ("arguments", "wrong"), [(["--idle=5", "--colour"], "--colour"), (["--debug=1"], "--debug=1"), (["--idle"], "")]
)
def test_arguments(arguments: list[str], wrong: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments) == 2
    assert f"weft engine: invalid argument: {wrong}" in capfd.readouterr().err


def test_a_folder_that_belongs_to_another_user_is_a_line_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def serve(*_: object) -> int:
        raise StateDamaged("cannot create the directory /run/weft: it belongs to uid 0")

    monkeypatch.setattr(main, "serve", serve)
    monkeypatch.setattr(main.confinement, "confine", lambda _: None)
    assert main.main([]) == 1
    assert capfd.readouterr().err.startswith("weft: cannot start the engine: cannot create the directory /run/weft")


@given(
    st.builds(
        frame.RequestFrame,
        version=TEXT.filter(bool),
        root=TEXT,
        view=TEXT,
        plugin=TEXT,
        environment=st.dictionaries(NAMES, TEXT),
        stdin=st.binary(max_size=200),
    )
)
def test_a_request_frame_round_trips(sent: frame.RequestFrame) -> None:
    data = frame.request(sent)
    head, body = data[: frame.HEAD.size], data[frame.HEAD.size :]
    assert frame.read_head(head) == (len(body), False)
    assert frame.parse(body) == sent


@given(st.binary(max_size=300))
def test_malformed_request_frames_are_refused(data: bytes) -> None:
    try:
        sent = frame.parse(data)
    except frame.FrameProblem:
        return
    assert all(name.startswith("CNI_") for name in sent.environment)


@pytest.mark.parametrize(
    "head",
    [
        frame.HEAD.pack(b"XEFT", frame.PROTOCOL, False, 1),
        frame.HEAD.pack(frame.MAGIC, frame.PROTOCOL + 1, False, 1),
        frame.HEAD.pack(frame.MAGIC, frame.PROTOCOL, False, frame.LONGEST_BODY + 1),
    ],
)
def test_malformed_frame_headers_are_refused(head: bytes) -> None:
    with pytest.raises(frame.FrameProblem):
        frame.read_head(head)


def test_only_cni_variables_are_the_calls() -> None:
    sent = frame.RequestFrame("1", "/r", "v", "bridge", {"CNI_COMMAND": "ADD", "LD_PRELOAD": "x", "PATH": "/"}, b"{}")
    found = frame.parse(frame.request(sent)[frame.HEAD.size :])
    assert (found.environment, found.others) == ({"CNI_COMMAND": "ADD"}, {"LD_PRELOAD": "x", "PATH": "/"})


def test_newer_compares_versions() -> None:
    assert newer("99.0", __version__)
    assert not newer(__version__, __version__)
    assert not newer("0.0.1", __version__)
    assert not newer("nonsense", __version__)
    assert newer(__version__, "")


def test_a_changed_source_file_makes_the_code_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cni_plugin" / "deep").mkdir(parents=True)
    source = tmp_path / "cni_plugin" / "deep" / "one.py"
    source.write_text("1\n")
    monkeypatch.setattr(code, "ROOT", str(tmp_path))
    monkeypatch.setattr(code, "_CHECK_SECONDS", 0.0)
    seen = code.Code()
    assert seen.verify() and seen.verify_folders()
    (source.parent / "__pycache__").mkdir()
    assert seen.verify_folders()
    os.utime(source, (1, 1))
    assert not seen.verify()
    os.utime(source, (2, 2))
    assert not seen.verify() and not seen.verify_folders(), "outdated code stays outdated"


def test_a_replaced_source_file_changes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ipam").mkdir()
    source, other = tmp_path / "ipam" / "one.py", tmp_path / "other.py"
    source.write_text("1\n")
    other.write_text("2\n")
    monkeypatch.setattr(code, "ROOT", str(tmp_path))
    monkeypatch.setattr(code, "_CHECK_SECONDS", 0.0)
    seen = code.Code()
    assert seen.verify_folders()
    other.replace(source)
    assert not seen.verify_folders()


def test_stderr_of_a_thread_goes_to_the_client_it_serves(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[bytes] = []
    stderr.redirect(heard.append)
    try:
        stderr.write("for the caller")
    finally:
        stderr.redirect(None)
    stderr.write("for the log")
    assert heard == [b"for the caller"]
    assert capfd.readouterr().err == "for the log"


@pytest.fixture(scope="module", params=["musl-gcc", "cc"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C client; its Python interpreter is a script that prints its arguments."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here: bin/setup takes another compiler then, or the client in Python")
    folder = tmp_path_factory.mktemp("client with a space")
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "python $*"\ncat\n')
    python.chmod(0o755)

    def run(command: Sequence[str]) -> bool:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode == 0 and "warning" not in done.stderr

    compiled = folder / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", request.param)
        assert build.compile_client(str(compiled), run)
    paths = {"python": str(python), "launcher": '/launch"er', "engine": "/engine", "root": str(folder)}
    (folder / "bridge").write_bytes(build.fill(compiled.read_bytes(), paths))
    (folder / "bridge").chmod(0o755)
    for name in ("weft", "firewall", "vrf"):
        (folder / name).symlink_to("bridge")
    return folder


def call(client: Path, name: str, stdin: bytes = b"", **variables: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run([client / name], env=variables, input=stdin, capture_output=True, check=False, timeout=20)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["bridge", "weft", "firewall", "vrf"])
def test_the_c_client_prints_about_as_python_does(client: Path, name: str) -> None:
    assert call(client, name) == (0, b"", versions.about(name).encode())


@pytest.mark.parametrize("name", ["bridge", "weft", "firewall", "vrf"])
@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"{}",
        b'{"cniVersion":"0.4.0"}',
        b'{ "CNIVERSION" :\n "1.0.0" }',
        b'{"cniVersion":"9.9.9"}',
        b'{"cniVersion":""}',
        b'{"cniVersion":"0.2.0"}',
        b'{"cniVersion":"1.0.0',
        b'{"cniVersion":"1.1.',
        b'{"cniVersion"',
        b'cniversion:"0.3.1"',
        b"\0\xff" * 50,
    ],
)
def test_the_c_client_answers_version_as_python_does(client: Path, name: str, stdin: bytes) -> None:
    assert call(client, name, stdin, CNI_COMMAND="VERSION") == (0, probe.answer(name, stdin), b"")


def test_the_c_client_runs_python_for_anything_else(client: Path) -> None:
    stdin = b'{"cniVersion":"0.4.0","x":"cniVersion"}'
    said = b'python -IBS /launch"er bridge\n'
    assert call(client, "bridge", stdin, CNI_COMMAND="VERSION") == (0, said + stdin, b"")
    asked = {"WEFT_ENGINE": "off"}, {"WEFT_DEBUG": "1"}, {"WEFT_LOG": "info"}, {"CNI_NETNS": "/proc/self/ns/net"}
    for variables in asked:
        assert call(client, "bridge", stdin, CNI_COMMAND="ADD", **variables) == (0, said + stdin, b"")


def test_the_c_client_tells_python_what_netavark_asks(client: Path) -> None:
    def netavark(*arguments: str, **variables: str) -> bytes:
        environment = {"WEFT_ENGINE": "off", **variables}
        return subprocess.run(
            [client / "weft", *arguments], env=environment, input=b"{}", capture_output=True, check=True, timeout=20
        ).stdout

    assert netavark("info") == versions.NETAVARK_INFO.encode()
    assert netavark("setup", "/run/netns/x") == b'python -IBS /launch"er weft setup /run/netns/x\n{}'
    assert netavark("create") == b'python -IBS /launch"er weft create\n{}'
    assert netavark("setup", "/run/netns/x", CNI_COMMAND="ADD") == b'python -IBS /launch"er weft\n{}'
    assert netavark("destroy") == b""


def test_what_is_a_call_by_netavark() -> None:
    def arguments(plugin: str = "weft", **variables: str) -> list[str]:
        sent = frame.RequestFrame("1", "/r", "v", plugin, {f"CNI_{key}": text for key, text in variables.items()}, b"")
        return frame.parse(frame.request(sent)[frame.HEAD.size :]).netavark

    assert arguments(NETAVARK="setup", NETNS="/run/netns/x") == ["setup", "/run/netns/x"]
    assert arguments(NETAVARK="create") == ["create"]
    # A CNI runtime may have set the variable.
    assert arguments(NETAVARK="setup", COMMAND="ADD") == arguments("bridge", NETAVARK="setup") == arguments() == []
