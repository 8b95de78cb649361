"""Programs beside the tests: the server as a process, and a headless Chromium driven over its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.count = socket, 0
        self.requests: list[str] = []  # addresses that the page asked for
        self.logged: list[str] = []  # errors, policy violations among them

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        await self.socket.send_json({"id": self.count, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.logged.append(json.dumps(message["params"]))
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]

    async def js(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not await self.js(expression):
            assert time.monotonic() < end, f"waited in vain for {expression}"
            await asyncio.sleep(0.02)

    async def type(self, text: str) -> None:
        """Put text into the question and press Enter, as a person would."""
        await self.js("document.querySelector('#question').focus()")
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                            windowsVirtualKeyCode=13)  # fmt: skip

    async def look(self, width: int, height: int, scheme: str) -> None:
        """Set the size of the window and light or dark."""
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                        mobile=width < 600)  # fmt: skip
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@contextlib.asynccontextmanager
async def open_tab(address: str, folder: Path, shows: str = ".empty"):
    """A tab at `address`, in a browser of its own with its profile in `folder`; `shows`: an element of the page."""
    process = subprocess.Popen(
        [find(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = next(line for line in process.stderr if "DevTools listening on" in line)
        port = line.split("://")[1].split("/")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{port}/json/list") as response:
                pages = [page for page in await response.json() if page["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Page.navigate", url=address)
                await tab.until(f"document.readyState == 'complete' && document.querySelector('{shows}') !== null")
                yield tab
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def start_server():
    """Yields a function that starts `python -m recipe.serve` and returns (process, address); all end with the block."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "recipe.serve", "--port", "0", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        started.append(process)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("serving"):
                return process, line.split(" at ")[1].split(" ")[0]
        raise AssertionError(f"the server did not start: exit {process.wait()}, {''.join(lines)}")

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)
