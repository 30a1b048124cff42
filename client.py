#!/usr/bin/env python3
"""The client of the four servers: send a line, show the reply, and repeat.

On a pipe a second thread sends while we receive: a server whose replies nobody takes stops reading.
"""

import argparse
import contextlib
import errno
import io
import os
import signal
import socket
import sys
import threading
from typing import Any

CHUNK = 65536  # bytes to move at a time, and the most to show at a terminal


def chat(sock: socket.socket) -> None:
    """Send each line that is typed, and show its reply. Raises OSError, or EOFError at the end."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    replies = sock.makefile("rb")
    print(f"Connected to {show(sock.getpeername())}. Leave with bye or Ctrl-C.")
    while True:
        for line in input("> ").split("\n"):  # With readline, a paste may be several lines.
            if line.strip() in ("bye", "exit", "quit"):
                return
            sock.sendall(line.encode(errors="replace") + b"\n")
            reply = replies.readline(CHUNK).decode(errors="backslashreplace")
            if not reply:
                raise ConnectionError
            text = reply.rstrip("\r\n")
            print(text if text.isprintable() else repr(text))  # no control characters


def relay(sock: socket.socket) -> None:
    """Copy standard input to the server, and its replies to standard output. Raises OSError."""
    sock.settimeout(None)  # A reply may take as long as it likes.
    complete = threading.Event()  # upload() sets it when it has sent all of the input.
    # A daemon thread does not keep the program alive: it may still wait for input at the end.
    threading.Thread(target=upload, args=(sock, complete), daemon=True).start()
    while data := sock.recv(CHUNK):
        write(data)
    if not complete.is_set():
        raise ConnectionError


def upload(sock: socket.socket, complete: threading.Event) -> None:
    """Copy standard input to the server, set complete, and close the sending side."""
    with contextlib.suppress(OSError):  # If the server has gone, relay() sees it, too.
        while data := os.read(sys.stdin.fileno(), CHUNK):
            sock.sendall(data)
        complete.set()  # first, because the server may close right after the shutdown
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def write(data: bytes) -> None:
    """Write to standard output. Raises SystemExit if that fails, as when nobody reads it."""
    try:
        while data:
            written = os.write(sys.stdout.fileno(), data)  # bytes, perhaps not all
            data = data[written:]
    except OSError as error:  # EPIPE, or EINVAL on Windows: the reader has gone, as in "| head".
        sys.exit(1 if error.errno in (errno.EPIPE, errno.EINVAL) else f"client: {error}")


def main() -> None:
    """Read the command line, connect, and talk with the server until either side leaves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host", metavar="HOST", nargs="?")
    parser.add_argument("port", metavar="PORT", nargs="?")
    options = parser.parse_args()
    talk = chat if sys.stdin.isatty() and sys.stdout.isatty() else relay
    if talk is relay and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it as it ends any program.
    try:
        with connect(options.host, options.port) as sock:
            talk(sock)
    except (EOFError, KeyboardInterrupt):  # Ctrl-D or Ctrl-C
        print()  # so that the shell's prompt has a line of its own
    except ConnectionError:
        sys.exit("client: the server has closed the connection")
    except (OSError, ValueError) as error:
        sys.exit(f"client: {error}")


def connect(host: Any, port: Any) -> socket.socket:
    """Return a socket that is connected to the server. Ask for its address if host is None."""
    if host is None:
        host, port = ask("Host", "127.0.0.1"), ask("Port", "10000")
    elif port is None and host.isdecimal():  # A lone number is a port.
        host, port = "127.0.0.1", host
    if host.isdecimal() or host.count(":") == 1 or "]" in host:  # localhost:10000, [::1]:10000
        raise ValueError(f"{host!a} is not a host (give host and port as two words)")
    address = host, port_number("10000" if port is None else port)
    try:
        return socket.create_connection(address, timeout=10)  # seconds, also for each reply
    except ConnectionRefusedError:
        why = "connection refused (no server is there, or it is server1 and has a client)"
    except (OSError, ValueError) as error:  # ValueError: no host can have such a name.
        why = getattr(error, "strerror", None) or str(error)
    sys.exit(f"client: cannot connect to {show(address)}: {why}")


def ask(name: str, default: str) -> str:
    """Ask for a value. Return the answer, or the default if it is blank, or if there is none."""
    stream = sys.stdout if sys.stdout and sys.stdout.isatty() else sys.stderr
    if stream:  # A closed stream is None, and print() would take standard output instead.
        print(f"{name} [{default}]: ", end="", file=stream, flush=True)
    if sys.stdin.isatty():
        return sys.stdin.readline().strip() or default
    # Without a buffer, which would swallow what follows the answers, and is for the server.
    line = io.FileIO(sys.stdin.fileno(), closefd=False).readline()
    return line.decode(errors="replace").strip() or default


def port_number(text: str) -> int:
    """Return the port that text names. Raises ValueError, with the reason, if it names none."""
    if not (text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"{text!a} is not a port (a number from 0 to 65535)")
    return int(text)


def show(address: Any) -> str:
    """Return a socket's address as people write it: 127.0.0.1:10000, [::1]:10000."""
    host, port = address[:2] if address else ("unknown", 0)  # macOS may have none.
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    main()
