"""The operator's view: a proxy that records the wire, and the entropy of bytes."""

import math
import socket
import threading
from collections import Counter


def entropy(data: bytes) -> float:
    """Shannon entropy of the bytes' frequencies, in bits a byte (8 at most)."""
    if not data:
        return 0.0
    total = len(data)
    return -sum(n / total * math.log2(n / total) for n in Counter(data).values())


class RecordingProxy:
    """Forwards TCP from a port of its own to `target` and keeps what passes.

    It stands for everything of the operator's between client and server: load
    balancers, TLS terminators, packet captures.
    """

    def __init__(self, target: tuple[str, int]):
        self._target = target
        self._lock = threading.Lock()
        self._to_server: list[bytearray] = []
        self._to_client: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def requests(self, path: str) -> list[bytes]:
        """The bodies of the POST requests to `path` that were seen, in order."""
        return [body for stream in self._streams(self._to_server) for body in _bodies(stream, path)]

    def request_heads(self, path: str) -> list[str]:
        """Their request lines and headers, which travel in the clear."""
        return [
            message.partition(b"\r\n\r\n")[0].decode("latin-1")
            for stream in self._streams(self._to_server)
            for message in _messages(stream, path)
        ]

    def everything(self) -> bytes:
        """All bytes that passed, both ways."""
        return b"".join(self._streams(self._to_server) + self._streams(self._to_client))

    def _streams(self, streams: list[bytearray]) -> list[bytes]:
        with self._lock:
            return [bytes(stream) for stream in streams]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for source, sink, streams in (
                (client, server, self._to_server),
                (server, client, self._to_client),
            ):
                record = bytearray()
                with self._lock:
                    streams.append(record)
                threading.Thread(target=self._copy, args=(source, sink, record), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, record: bytearray) -> None:
        try:
            while data := source.recv(65536):
                with self._lock:
                    record.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (source, sink):
                end.close()


def _messages(stream: bytes, path: str) -> list[bytes]:
    """The HTTP/1.1 POST requests to `path` in one direction of a connection."""
    line = f"POST {path} ".encode()
    found = []
    position = stream.find(line)
    while position >= 0:
        following = stream.find(line, position + len(line))
        found.append(stream[position : following if following >= 0 else len(stream)])
        position = following
    return found


def _bodies(stream: bytes, path: str) -> list[bytes]:
    bodies = []
    for message in _messages(stream, path):
        head, _, rest = message.partition(b"\r\n\r\n")
        headers = dict(
            line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
        )
        length = int(headers.get(b"content-length", len(rest)))
        bodies.append(rest[:length])
    return bodies
