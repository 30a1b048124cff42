#!/usr/bin/env python3
"""The client of the four servers: send a line, show the reply, and again.

At a terminal it asks for a line, and waits for its reply. On a pipe it joins standard input and
output to the server: bytes go out as they come and replies come in as they come, both at once,
so two threads are at work.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable

DEFAULT_HOST = "localhost"
DEFAULT_PORT = "10000"
CHUNK = 65536  # bytes moved at a time


def main() -> None:
    """Read the command line, connect, and talk with the server until either side leaves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("host", metavar="HOST", nargs="?")
    parser.add_argument("port", metavar="PORT", nargs="?", type=port_number, default=DEFAULT_PORT)
    options = parser.parse_args()
    if not (sys.stdin and sys.stdout):
        sys.exit("client: standard input or standard output is closed")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        host, port = options.host, options.port
        if host is None:
            host = ask("Host", DEFAULT_HOST)
            port = ask("Port", DEFAULT_PORT, port_number)
        with connect(host, port) as sock:
            chat(sock) if terminal else relay(sock)
    except KeyboardInterrupt:
        sys.exit(0 if terminal else 130)  # 128 + SIGINT: not all was done
    except OSError as error:
        lost = "connection lost: " if isinstance(error, ConnectionError) else ""
        sys.exit(f"client: {lost}{error.strerror or error}")


def connect(host: str, port: int) -> socket.socket:
    """Return a socket connected to the server; raises SystemExit with one line if there is none."""
    try:
        sock = socket.create_connection((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, ConnectionRefusedError):
            reason = f"{reason} (no server there, or server1 while it has a client)"
        sys.exit(f"client: cannot connect to {show((host, port))}: {reason}")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# --- At a terminal ------------------------------------------------------------------------------


def chat(sock: socket.socket) -> None:
    """Send each line that is typed, and show its reply; raises OSError when the server is lost."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    sys.stdin.reconfigure(errors="surrogateescape")  # what is typed goes out as it is,
    sys.stdout.reconfigure(errors="backslashreplace")  # and what can't be shown is escaped
    print(f"Connected to {show(sock.getpeername())}. Leave with Ctrl-D, Ctrl-C or bye.")
    replies = sock.makefile("rb")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            break
        if line.strip() == "bye":
            break
        sock.sendall(line.encode(errors="surrogateescape") + b"\n")
        reply = replies.readline(CHUNK)
        if not reply.endswith(b"\n"):
            raise ConnectionError("no whole reply came")
        print(visible(reply.rstrip(b"\r\n")))


def visible(reply: bytes) -> str:
    """Return a reply as text, with all that a terminal might obey escaped."""
    text = reply.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# --- On a pipe ----------------------------------------------------------------------------------


def relay(sock: socket.socket) -> None:
    """Copy standard input to the server, and what it sends to standard output, until it ends.

    Raises OSError when the server is lost, or ends too early.
    """
    sent = received = 0  # line ends: all four servers send as many as they get
    all_sent = False

    def upload() -> None:
        """Copy standard input to the server, then close the sending side."""
        nonlocal sent, all_sent
        with contextlib.suppress(OSError):  # the other thread sees that not all was sent
            while data := os.read(0, CHUNK):
                sent += data.count(b"\n")
                sock.sendall(data)
            all_sent = True
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=upload, daemon=True).start()
    while data := sock.recv(CHUNK):
        received += data.count(b"\n")
        try:
            while data:
                data = data[os.write(1, data) :]
        except BrokenPipeError:
            sys.exit(1)  # nobody reads on, as in client.py ... | head: nobody to tell
    if not all_sent:
        raise ConnectionError("it ended before the input did")
    if received < sent:
        raise ConnectionError("it ended before all lines had a reply")


# --- Shared with the servers --------------------------------------------------------------------


def ask(name: str, default: str, kind: Callable[[str], object] = str) -> object:
    """Return what kind makes of a line of standard input; blank, or its end, means the default.

    Only a terminal is shown the question. If kind raises ArgumentTypeError, ask again; raises
    SystemExit if the input ends then.
    """
    wrong = False
    while True:
        line = b""
        with contextlib.suppress(AttributeError, OSError):  # no input, or none to be read: it ended
            if sys.stdin.isatty():
                print(f"{name} [{default}]: ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.buffer.raw.readline()  # and nothing beyond the line
        if wrong and not line:
            sys.exit(2)
        try:
            return kind(line.decode(errors="replace").strip() or default)
        except argparse.ArgumentTypeError as error:
            print(error, file=sys.stderr)
            wrong = True


def port_number(text: str) -> int:
    """Return the port that text names; raises ArgumentTypeError if it names none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!a} is not a port: a number from 0 to 65535 is")
    return int(text)


def show(address: tuple) -> str:
    """Return a socket address as people write it: 127.0.0.1:10000, [::1]:10000."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    main()
