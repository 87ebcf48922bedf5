"""A headless Chromium driven over a pipe by the DevTools protocol: what a page does where people look at it.

https://chromedevtools.github.io/devtools-protocol/. Messages are JSON and end with a zero byte, which takes nothing but
the standard library; `--remote-debugging-pipe` reads them from file descriptor 3 and writes to 4.
"""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
LOWEST = 10  # file descriptors above those that the browser is given


class Browser:
    """One page in a browser of its own, and what happened in it: messages, errors, requests."""

    def __init__(self, folder: Path) -> None:
        (its_input, commands), (answers, its_output) = os.pipe(), os.pipe()
        its_input, its_output = (fcntl.fcntl(fd, fcntl.F_DUPFD, LOWEST) for fd in (its_input, its_output))
        redirected = f'exec "$@" 3<&{its_input} 4>&{its_output}'
        self.process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(its_input, its_output),
            stderr=subprocess.DEVNULL,
        )
        for fd in (its_input, its_output):
            os.close(fd)
        self._commands, self._answers = os.fdopen(commands, "wb", buffering=0), os.fdopen(answers, "rb")
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path) -> None:
        """Load a local file, and wait until all of it is there."""
        self.events.clear()
        self.do("Page.navigate", url=path.as_uri())
        while not self.reported("Page.loadEventFired"):
            self._read()

    def show(self, width: int = 1280, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """Set the size of the window, the colour scheme, and screen or print."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.do("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, script: str) -> Any:
        """Return what a JavaScript expression gives, as JSON."""
        answer = self.do("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def reported(self, *methods: str) -> list[dict[str, Any]]:
        """Return what the events of these names said."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self.do("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.do("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))
