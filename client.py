#!/usr/bin/env python3
"""The client of the four servers: send a line, show the reply, and repeat.

At a terminal it reads a line, sends it, and waits for the reply. On a pipe it copies standard input
to the server, and meanwhile, in another thread, the replies to standard output, byte for byte. If
it sent all of its input first, it could get stuck: a server that cannot send its replies stops
reading, and then each waits for the other. Without HOST, the first two lines are host and port.
"""

import argparse
import contextlib
import errno
import hashlib
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
DEFAULT_PORT = 10000
CHUNK = 65536  # bytes to move at a time, and the most that a reply at a terminal may have
SERVER_FULL = b"error: server full\n"  # all that servers 2 to 4 send if they have no place for us
END_KEY = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
Address = tuple[Any, ...]  # a host and a port, and two numbers more for IPv6


# --- At a terminal ------------------------------------------------------------------------------


def chat(sock: socket.socket) -> None:
    """Send each line that is typed, and show its reply. Raises OSError when the server is lost."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    for stream in (sys.stdin, sys.stdout):  # for bytes that are no text, or cannot be shown
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    print(f"Connected to {show(sock.getpeername())}. Leave with {END_KEY}, Ctrl-C or bye.")
    while True:
        try:
            lines = input("> ").split("\n")  # With readline, a paste may be several lines.
        except EOFError:
            print()
            return
        for line in lines:
            if line.strip() == "bye":
                return
            sock.sendall(line.encode() + b"\n")
            print(visible(read_line(sock)))


def read_line(sock: socket.socket) -> bytes:
    """Return the next line from the server, which sends only one at a time.

    Raises ConnectionError if there is no whole line.
    """
    line = b""
    while not line.endswith(b"\n"):
        # We wait 0.2 seconds at a time, because on Windows, Ctrl-C is noticed only in between.
        while not select.select([sock], [], [], 0.2)[0]:
            pass
        data = sock.recv(CHUNK)
        line += data
        if not data or len(line) > CHUNK:
            raise ConnectionError("the server sent no whole reply")
    return line


def visible(reply: bytes) -> str:
    """Return a reply as text, without the end of its line.

    Its control characters are escaped: ESC, which could change the terminal, is shown as \\x1b.
    """
    text = reply.rstrip(b"\r\n").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- On a pipe ----------------------------------------------------------------------------------
#
# A server closes the connection when it has replied to all. But if it is killed, its system closes
# the connection, and to us that looks the same. So we count what we have sent and received, and
# check() compares that. It decides only whether the client ends with an error: you may skip it.


class Traffic:
    """What has passed in one direction."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()  # If two are the same, so are the bytes.
        self.whole_lines = 0  # lines that have an end
        self.lines = 0  # the same, and one more if the last line has no end
        self.complete = False  # whether upload() has sent everything

    def add(self, data: bytes) -> None:
        """Count data, the next bytes."""
        self.hash.update(data)
        self.whole_lines += data.count(b"\n")
        self.lines = self.whole_lines + (0 if data.endswith(b"\n") else 1)


def relay(sock: socket.socket) -> None:
    """Copy standard input to the server, and what it sends to standard output, until it ends.

    Raises OSError when the server is lost, or when it ends before it has replied to every line.
    """
    sent, received = Traffic(), Traffic()
    # A daemon, because it may still wait for input when the server has ended.
    threading.Thread(target=upload, args=(sock, sent), daemon=True).start()
    while data := sock.recv(CHUNK):
        received.add(data)
        write(data)
    check(sent, received)


def upload(sock: socket.socket, sent: Traffic) -> None:
    """Copy standard input to the server, then close the sending side."""
    with contextlib.suppress(OSError, MemoryError):  # If it fails, sent never is complete.
        while data := os.read(0, CHUNK):
            sent.add(data)
            sock.sendall(data)
        # First this, then the shutdown: the server closes after that, and check() needs to know.
        sent.complete = True
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)  # The server learns only from this that it has all.


def write(data: bytes) -> None:
    """Write data to standard output. Raises OSError, or SystemExit if nobody reads it any more."""
    try:
        while data:
            written = os.write(1, data)  # bytes, perhaps not all
            data = data[written:]
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL on Windows
            sys.exit(1)  # as in client.py ... | head
        raise


def check(sent: Traffic, received: Traffic) -> None:
    """Raise OSError if replies are missing. We do not know which of the servers it is."""
    echoed = received.hash.digest() == sent.hash.digest()  # Server4 sends back what we have sent.
    replied = received.whole_lines >= sent.lines  # Servers 1 to 3 send a line for each of ours.
    full = received.hash.digest() == hashlib.sha256(SERVER_FULL).digest()
    if full and not echoed:  # If we have sent SERVER_FULL, it is an echo.
        raise OSError("the server is full")
    if not sent.complete:  # upload() still waits for input, or it has failed.
        raise ConnectionError("not all of the input was sent")
    if not echoed and not replied:
        raise ConnectionError("the server ended before it had replied to every line")


# --- The command line ---------------------------------------------------------------------------


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
        # Ctrl-C ends the client as it ends any program, with status 130 in a shell. At a terminal
        # it is a way to leave, with status 0: see KeyboardInterrupt below.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
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
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        # ValueError: the select in read_line() takes no descriptor above 1,023.
        # RuntimeError: relay() can start no thread.
        lost = "connection lost: " if isinstance(error, ConnectionError) else ""
        sys.exit(f"client: {lost}{reason(error)}")


def connect(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to the server. Raises SystemExit with one line if not."""
    try:
        sock = socket.create_connection((host, port))
    except (OSError, ValueError) as error:  # ValueError: no host can have such a name.
        why = reason(error)
        if isinstance(error, ConnectionRefusedError):
            why += " (no server there, or server1 while it has a client)"
        sys.exit(f"client: cannot connect to {show((host, port))}: {why}")
    with contextlib.suppress(OSError):  # macOS refuses it when the server has closed already.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# --- The same as in the servers -----------------------------------------------------------------


def ask(name: str, default: Any, convert: Callable[[str], Any]) -> Any:
    """Ask for a value. Return convert(answer), or the default if the answer is blank, or missing.

    While convert() raises ArgumentTypeError, ask again. Raises SystemExit if the input ends then.
    """
    wrong = False
    while True:
        line = b""
        with contextlib.suppress(OSError):  # A closed standard input has ended, too.
            if os.isatty(0) and sys.stderr:  # A closed sys.stderr is None.
                print(f"{name} [{default}]: ", end="", file=sys.stderr, flush=True)
            # 0 is standard input. We read it byte by byte, and so no more than the line: in
            # client.py, the rest of a pipe is for the server.
            while not line.endswith(b"\n") and (byte := os.read(0, 1)):
                line += byte
        if wrong and not line:
            sys.exit(2)
        answer = line.decode(errors="replace").strip()
        try:
            return convert(answer) if answer else default
        except argparse.ArgumentTypeError as error:
            if sys.stderr:
                print(error, file=sys.stderr)
            wrong = True


def port_number(text: str) -> int:
    """Return the port that text names. Raises ArgumentTypeError if it names none."""
    # isdigit() also accepts "²", and int() refuses thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!a} is not a port (a number from 0 to 65535)")
    return int(text)


def show(address: Address) -> str:
    """Return a socket address as people write it: 127.0.0.1:10000, [::1]:10000."""
    if not address:  # macOS may have none for a client that disconnects before we accept it.
        return "unknown"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason(error: BaseException) -> str:
    """Return what an error says, without its number: Address already in use."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


if __name__ == "__main__":
    main()
