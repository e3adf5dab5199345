"""Runs `occlude` for the demonstration and leaves no process behind."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import screen

# It starts in less than a second; a minute on a busy machine means that it hangs.
START_SECONDS = 60
STOP_SECONDS = 10


class DemoError(Exception):
    """The demonstration did not go as it must."""


class Stage:
    """A folder to work in, the binary, and every process that was started."""

    def __init__(self, binary: Path, folder: Path):
        self.binary = binary
        self.folder = folder
        self._running = ExitStack()
        # Nothing of the caller's settings may change the story, and no proxy stands
        # before this machine's own ports.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("OCCLUDE_") and not name.lower().endswith("_proxy")
        }

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return self._running.__exit__(*exception)

    def run(self, *words: str, expect: int = 0, show: bool = True) -> subprocess.CompletedProcess:
        """Runs one command to its end and shows it with what it printed."""
        screen.command(["occlude", *words])
        result = subprocess.run(
            [self.binary, *words],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if result.returncode != expect:
            screen.output(result.stdout + result.stderr)
            raise DemoError(f"occlude {words[0]} ended with {result.returncode}, expected {expect}")
        if show:
            screen.output(result.stdout + result.stderr)
        return result

    def start(self, log: str, *words: str, binary: Path | None = None, shown: str = "occlude") -> subprocess.Popen:
        """Starts a command that keeps running; its output goes to the file `log`."""
        screen.command([shown, *words, "&"])
        with open(self.folder / log, "wb") as file:
            process = subprocess.Popen(
                [binary or self.binary, *words],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._running.callback(stop, process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def wait_until_listening(self, process: subprocess.Popen, port: int, log: str) -> None:
        """Waits until the port accepts a connection."""

        def connects() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return False
            return True

        self._wait(process, connects, log)

    def wait_until_ready(self, process: subprocess.Popen, port: int, log: str) -> None:
        """Waits until the server says that its model is loaded."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def is_ready() -> bool:
            try:
                with direct.open(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
                    return answer.status == 200
            except (OSError, urllib.error.URLError):
                return False

        self._wait(process, is_ready, log)

    def _wait(self, process: subprocess.Popen, condition, log: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if process.poll() is not None:
                screen.output(self.log(log))
                raise DemoError(f"it ended with {process.returncode}; its log is {log}")
            if time.monotonic() > deadline:
                screen.output(self.log(log))
                raise DemoError(f"it was not ready after {START_SECONDS} s; its log is {log}")
            time.sleep(0.05)


def stop(process: subprocess.Popen) -> None:
    """Asks a process to end, and insists."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
