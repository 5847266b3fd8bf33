"""Drive Chromium over its DevTools protocol, through a pipe, and serve a folder to it."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 60  # seconds


def found():
    """The path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    """The address of a folder, as ``python -m http.server`` serves it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Tab:
    """One page of a browser."""

    def __init__(self, commands, answers):
        self._commands, self._answers, self._asked, self._session, self.events = commands, answers, 0, None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """Give a command, and wait for its answer."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = json.loads(self._answers.message())
            if answer.get("id") == self._asked:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression):
        """The value of an expression of JavaScript, or of what it promises."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression):
        """Wait until an expression is true; the elements in it may still be missing."""
        end = time.monotonic() + WAIT
        while not (value := self.evaluate(f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()")):
            assert time.monotonic() < end, (expression, self.evaluate("document.body.innerText"))
            time.sleep(0.05)
        return value

    def says(self, words):
        """Wait until the page's status has these words."""
        self.until(f"document.getElementById('status').textContent.includes({json.dumps(words)})")

    def text(self, name):
        """The text of an element."""
        return self.evaluate(f"document.getElementById('{name}').textContent")

    def clear(self):
        """Take the classes away that the page shows."""
        self.evaluate("document.getElementById('classes').replaceChildren()")

    def choose(self, path):
        """Choose a file."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def answer(self, path):
        """The classes that the page shows for a picture: (label, probability), the most probable first."""
        self.clear()
        self.choose(path)
        return self.classes()

    def classes(self):
        """The classes that the page shows, as soon as it shows some."""
        read = "[...document.querySelectorAll('#classes li')].map(i => [+i.dataset.label, +i.dataset.probability])"
        self.until(f"{read}.length")
        return [tuple(pair) for pair in self.evaluate(read)]


class _Pipe:
    """Messages that end in NUL, from a file descriptor."""

    def __init__(self, handle):
        self._handle, self._left = handle, b""

    def message(self):
        while b"\0" not in self._left:
            part = os.read(self._handle, 2**20)
            assert part, "the browser has ended"
            self._left += part
        first, _, self._left = self._left.partition(b"\0")
        return first


@contextmanager
def browser(*flags):
    """A tab of a headless Chromium, which shows nothing and knows nobody."""
    (read, give), (take, write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        command = f'exec "$@" 3<&{read} 4>&{write}'
        fixed = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
        words = [found(), *fixed, f"--user-data-dir={profile}", *flags]
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", *words],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        try:
            with os.fdopen(give, "wb") as commands:
                yield Tab(commands, _Pipe(take))
        finally:
            process.terminate()
            process.wait(20)
            os.close(take)
