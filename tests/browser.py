"""A headless Chromium, spoken to through a pipe: no driver and no socket."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
    """Path of a browser, or None. ``LA_CORE_BROWSER`` names one that is not on the path."""
    named = os.environ.get("LA_CORE_BROWSER")
    return next(filter(None, map(shutil.which, (named,) if named else NAMES)), None)


class Browser:
    """One page of one browser, by the DevTools protocol: JSON messages that end in a zero byte."""

    def __init__(self, path):
        with ExitStack() as stack:
            profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            to_browser, self._out = os.pipe()
            self._in, from_browser = os.pipe()
            # The browser reads its file descriptor 3 and writes 4; a shell puts the pipes there.
            command = 'exec "$0" "$@" 3<&"$LA_CORE_IN" 4>&"$LA_CORE_OUT"'
            options = (
                "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox",
                "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
                "--hide-scrollbars", "about:blank",
            )  # fmt: skip
            process = subprocess.Popen(
                ["bash", "-c", command, path, *options],
                pass_fds=(to_browser, from_browser),
                env={**os.environ, "LA_CORE_IN": str(to_browser), "LA_CORE_OUT": str(from_browser)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(process.kill)
            os.close(to_browser)
            os.close(from_browser)
            stack.callback(os.close, self._in)
            stack.callback(os.close, self._out)
            self._number, self._held, self._session, self.events = 0, b"", None, []
            (page,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
            self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                self(f"{domain}.enable")
            self._stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def __call__(self, method, **params):
        """Call a method, and keep the events that come before its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url):
        """Load a page, and wait for it."""
        self("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression):
        """The value of an expression in the page."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def width(self, pixels, height=900, dark=False):
        """The size of the window, and what the reader prefers."""
        self(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=height, deviceScaleFactor=1, mobile=pixels < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", media="", features=scheme)

    def _read(self):
        while b"\0" not in self._held:
            more = os.read(self._in, 2**20)
            assert more, "the browser ended"
            self._held += more
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)
