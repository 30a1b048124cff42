#!/usr/bin/env python3
"""The client of the four servers: send a line, show the reply, and again.

At a terminal it reads a line, sends it, and waits for the reply. On a pipe it joins standard input
and output to the server, byte for byte. Bytes go out as they come, and replies come in as they
come, both at once: so there are two threads.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

DEFAULT_HOST = "localhost"
DEFAULT_PORT = "10000"
CHUNK = 65536  # bytes to move at a time, and the most that a reply at a terminal may have
END_KEY = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
Address = tuple[Any, ...]  # a host and a port, and two numbers more for IPv6


def main() -> None:
    """Read the command line, connect, and talk with the server until either side leaves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host", metavar="HOST", nargs="?")
    parser.add_argument("port", metavar="PORT", nargs="?", type=port_number, default=DEFAULT_PORT)
    options = parser.parse_args()
    if not (sys.stdin and sys.stdout):
        sys.exit("client: standard input or standard output is closed")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not terminal:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, whatever it waits for.
    try:
        host, port = options.host, options.port
        if host is None:
            host = ask("Host", DEFAULT_HOST, str)
            port = ask("Port", DEFAULT_PORT, port_number)
        with connect(host, port) as sock:
            if terminal:
                chat(sock)
            else:
                relay(sock)
    except KeyboardInterrupt:
        sys.exit(0)
    except OSError as error:
        lost = "connection lost: " if isinstance(error, ConnectionError) else ""
        sys.exit(f"client: {lost}{reason(error)}")


def connect(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to the server. Raises SystemExit with one line if not."""
    try:
        sock = socket.create_connection((host, port))
    except (OSError, UnicodeError) as error:
        why = reason(error)
        if isinstance(error, ConnectionRefusedError):
            why += " (no server there, or server1 while it has a client)"
        sys.exit(f"client: cannot connect to {show((host, port))}: {why}")
    with contextlib.suppress(OSError):  # macOS refuses it when the server has closed already.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# --- At a terminal ------------------------------------------------------------------------------


def chat(sock: socket.socket) -> None:
    """Send each line that is typed, and show its reply. Raises OSError when the server is lost."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what a terminal cannot show
    print(f"Connected to {show(sock.getpeername())}. Leave with {END_KEY}, Ctrl-C or bye.")
    while True:
        try:
            lines = input("> ").split("\n")  # With readline, pasted text may be several.
        except EOFError:
            print()
            return
        for line in lines:
            if line.strip() == "bye":
                return
            sock.sendall(line.encode() + b"\n")
            print(visible(read_line(sock)))


def read_line(sock: socket.socket) -> bytes:
    """Return the next line from the server. Raises ConnectionError if there is no whole line."""
    line = b""
    while not line.endswith(b"\n"):
        while not select.select([sock], [], [], 0.2)[0]:
            pass  # On Windows recv does not notice Ctrl-C, so we do not wait in it.
        data = sock.recv(CHUNK)
        line += data
        if not data or len(line) > CHUNK:
            raise ConnectionError("the server sent no whole reply")
    return line


def visible(reply: bytes) -> str:
    """Return a reply as text, without its end, and with its control characters escaped."""
    text = reply.rstrip(b"\r\n").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # without its quotes


# --- On a pipe ----------------------------------------------------------------------------------


def relay(sock: socket.socket) -> None:
    """Copy standard input to the server, and what it sends to standard output, until it ends.

    Raises OSError when the server is lost, or when it ends before it has replied to every line.
    """
    sent, received = Lines(), Lines()  # All four servers send as many as they get.
    all_sent = threading.Event()

    def upload() -> None:
        """Copy standard input to the server, then close the sending side."""
        with contextlib.suppress(OSError):  # The other thread notices that not all was sent.
            while data := os.read(0, CHUNK):
                sent.add(data)
                sock.sendall(data)
            all_sent.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=upload, daemon=True).start()
    while data := sock.recv(CHUNK):
        received.add(data)
        while data:
            try:
                data = data[os.write(1, data) :]
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL on Windows
                    sys.exit(1)  # Nobody reads any more, as in client.py ... | head.
                raise
    if not all_sent.is_set():
        raise ConnectionError("the server ended before the input did")
    # A reply was cut off: "2\n3" for "2\n3\n". Or a last line had none: "2\n" for "2\n3".
    if received.whole < sent.whole or received.count < sent.count:
        raise ConnectionError("the server ended before it had replied to every line")


class Lines:
    """A count of the lines in a stream of bytes, the last of which may have no end."""

    whole = 0  # lines that have an end: 1 in "2\n3"
    count = 0  # all lines: 2 in "2\n3"

    def add(self, data: bytes) -> None:
        """Count the lines in data, the next bytes of the stream."""
        self.whole += data.count(b"\n")
        self.count = self.whole + (0 if data.endswith(b"\n") else 1)


# --- Shared with the servers --------------------------------------------------------------------


def ask(name: str, default: str, convert: Callable[[str], Any]) -> Any:
    """Return convert(an answer from standard input). Blank, or the end, means the default.

    Only a terminal is shown the question. While convert raises ArgumentTypeError, ask again.
    Raises SystemExit if the input ends then.
    """
    wrong = False
    while True:
        line = b""
        with contextlib.suppress(OSError):  # A standard input that is closed has ended.
            if os.isatty(0):
                print(f"{name} [{default}]: ", end="", file=sys.stderr, flush=True)
            # Without a buffer, unlike input(): in client.py, what follows on a pipe is not for us.
            with open(0, "rb", buffering=0, closefd=False) as stdin:
                line = stdin.readline()
        if wrong and not line:
            sys.exit(2)
        try:
            return convert(line.decode(errors="replace").strip() or default)
        except argparse.ArgumentTypeError as error:
            with contextlib.suppress(OSError, AttributeError):  # Nobody reads standard error.
                sys.stderr.write(f"{error}\n")
            wrong = True


def port_number(text: str) -> int:
    """Return the port that text names. Raises ArgumentTypeError if it names none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!a} is not a port (a number from 0 to 65535)")
    return int(text)


def show(address: Address) -> str:
    """Return a socket address as people write it: 127.0.0.1:10000, [::1]:10000."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason(error: BaseException) -> str:
    """Return what an error says, without its number: Address already in use."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


if __name__ == "__main__":
    main()
