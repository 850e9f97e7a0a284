"""A headless Chromium driven by the DevTools protocol: pages are loaded, clicked and inspected.

Source: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

EXPECTED = 60.0
"""Timeout of the start, of calls and of expected events, seconds."""
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # otherwise it refuses to run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def program() -> str | None:
    """The executable of the browser, None if it is not installed."""
    # Debian's launcher prints warnings on machines with much memory.
    return shutil.which("/usr/lib/chromium/chromium") or shutil.which("chromium")


class Browser:
    """A browser with one page. ``problems``: console errors, exceptions and blocked requests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[str] = []
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Self:
        found = program()
        assert found is not None, "chromium is not installed: bin/setup --test"
        # Its own home directory: nothing of the machine's user is read or written.
        environment = {"HOME": str(self._folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC"}
        self._process = subprocess.Popen(
            [found, *OPTIONS, f"--user-data-dir={self._folder / 'profile'}", "about:blank"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "browser.log").open("wb"),
            start_new_session=True,
        )
        try:
            self._session = aiohttp.ClientSession()
            self._socket = await self._session.ws_connect(await self._place(), max_msg_size=0)
            self._reading = asyncio.create_task(self._read())
            for domain in ("Page", "Runtime", "Log"):
                await self.call(f"{domain}.enable")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()
        await self._end()

    async def _end(self) -> None:
        await self._session.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)

    async def _place(self) -> str:
        """The websocket URL of the page."""
        file = self._folder / "profile" / "DevToolsActivePort"
        async with asyncio.timeout(EXPECTED):
            while True:
                assert self._process.poll() is None, (self._folder / "browser.log").read_text(errors="replace")[-2000:]
                try:
                    port = int(file.read_text().split()[0])
                    async with self._session.get(f"http://127.0.0.1:{port}/json/list") as response:
                        pages = [one for one in await response.json() if one["type"] == "page"]
                    if pages:
                        return str(pages[0]["webSocketDebuggerUrl"])
                except (OSError, IndexError, ValueError, aiohttp.ClientError):
                    pass
                await asyncio.sleep(0.1)

    async def _read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            waiting = self._answers.pop(found.get("id", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(found)
            self._look(found.get("method", ""), found.get("params", {}))

    def _look(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(one.get("value", one.get("description"))) for one in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog: {about['message']}")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the protocol; its result."""
        self._number += 1
        waiting = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        found = await asyncio.wait_for(waiting, EXPECTED)
        assert "error" not in found, f"{method}: {found['error']}"
        result: dict[str, Any] = found["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=url)

    async def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window in pixels, and ``prefers-color-scheme``."""
        narrow = width < 600
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=narrow
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def text(self, selector: str = "body") -> str:
        """The visible text of an element; "" if there is none."""
        return str(await self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def until(self, expression: str) -> None:
        """Wait until an expression of JavaScript is true."""
        try:
            async with asyncio.timeout(EXPECTED):
                while not await self.ask(f"Boolean({expression})"):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.text()
            raise AssertionError(f"never true: {expression}\n{text[:3000]}\n{self.problems}") from None

    async def click(self, expression: str) -> None:
        """Click in the middle of the element that an expression gives, with the mouse."""
        place = await self.ask(
            f"(() => {{ const one = {expression}; one.scrollIntoView({{block: 'center'}});"
            " const box = one.getBoundingClientRect();"
            " return [box.x + Math.min(box.width / 2, 30), box.y + Math.min(box.height / 2, 14)]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def press(self, key: str, text: str = "") -> None:
        """Press and release a key: "Tab", "Enter", "ArrowDown", "Escape"."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        if key == "Enter":
            text = "\r"
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def write(self, text: str) -> None:
        """Type text into the focused element."""
        await self.call("Input.insertText", text=text)

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        """A screenshot (PNG) of the window or of the whole page."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
