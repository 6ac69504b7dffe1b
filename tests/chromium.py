"""A headless Chromium that tests drive through its debugging pipe: no port, no driver.

`python -m tests.chromium runs/demo/evaluation/report.html docs/report` takes those of docs/.
"""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[1]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S = 60
# What the protocol wants to know of a key.
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39}


def chromium_or_skip() -> str:
    """The path of Chromium; skips the test where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed; .ci/run installs Debian's package chromium.")
    return found


def axe_or_skip() -> str:
    """The source of axe-core; skips the test where there is none."""
    path = CHECKOUT / ".cache" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("axe-core is not installed; .ci/run installs it: npm install axe-core.")
    return path.read_text()


class Chromium:
    """One browser with one tab. Values come back as JSON has them, of any type.

    Args:
        path: the location of the browser.
    """

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run"
        command = (
            f'exec "$0" {flags} --remote-debugging-pipe --user-data-dir="$1" about:blank '
            f"3<&{theirs_in} 4>&{theirs_out}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command, path, self._profile.name],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._buffer, self._calls = ours_in, ours_out, b"", 0
        self._session: str | None = None
        self.messages: list[str] = []  # errors of the page, and what its policy refused
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def open(self, page: Path, width: int = 1280, height: int = 800, *, dark: bool = False) -> None:
        """Loads a file in a window of this size and of this colour scheme."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + _TIMEOUT_S
        while self.run("document.readyState + ' ' + location.protocol") != "complete file:":
            assert time.monotonic() < deadline, f"{page} did not load"
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def allow_scripts(self, allowed: bool) -> None:
        """Whether pages that are opened from now on run scripts; `run` always does."""
        self._call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        reply = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def press(self, *keys: str) -> None:
        """Presses keys: names of `_KEYS`, or characters."""
        for key in keys:
            fields: dict[str, Any] = {"key": key, "code": key}
            if key in _KEYS:
                fields["windowsVirtualKeyCode"] = _KEYS[key]
            else:
                fields["text"] = key
            self._call("Input.dispatchKeyEvent", type="keyDown", **fields)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        call: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session:
            call["sessionId"] = self._session
        data = json.dumps(call).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            message = self._read()
            if message.get("id") == self._calls:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        """Keeps events that a page without faults does not cause."""
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.messages.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.messages.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("data:", "file:", "about:")):
                    self.messages.append(f"request: {url}")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], _TIMEOUT_S)
            assert ready, "Chromium does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


def main(page: Path, prefix: str) -> None:
    """Small screenshots of a page's first screen, at two widths, light and dark."""
    with Chromium(chromium_or_skip()) as browser:
        for width, height in ((1280, 900), (390, 844)):
            for dark in (False, True):
                browser.open(page, width, height, dark=dark)
                picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
                name = f"{prefix}-{width}-{'dark' if dark else 'light'}.png"
                picture.quantize(128).save(name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
