#!/usr/bin/env python3
"""An echo server (RFC 862) for many clients at once: one thread, and select.

The model is exactly that of server3.py: ask the kernel which sockets can be read from or written
to without waiting, take one short turn with each of them, and ask again. Only the conversation
differs: it does not look for the ends of lines, and gives every byte back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

NAME = "server4"
DEFAULT_PORT = "10000"
BACKLOG = 1024  # connections that the kernel keeps until we accept them
MAX_CLIENTS = 1000
GROUP = 64  # clients to accept in a row, before the others get their turn
CHUNK = 65536  # bytes to read at a time, so also the most that we owe a client
PAUSE = 0.01  # seconds until we try again when the system has run out of something
# To notice that a client has vanished (man 7 tcp): the seconds of silence before the kernel probes
# it, the same on macOS, the seconds between probes, the milliseconds that bytes may be undelivered.
TIMEOUTS = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 5, "TCP_USER_TIMEOUT": 90_000}
Address = tuple[Any, ...]  # a host and a port, and two numbers more for IPv6


# --- The model: a loop, and every client in one of two states -----------------------------------
#
# Either we wait to read from a client, or we owe it bytes and wait until it takes them. We read
# nothing from a client that we owe bytes, so one that never reads its replies costs little memory.


def serve(listener: socket.socket) -> None:
    """Serve all clients that connect, for ever."""
    listener.setblocking(False)
    listener_fd = listener.fileno()
    clients: dict[int, Client] = {}  # by descriptor: select takes numbers faster than sockets
    reading = {listener_fd}  # the descriptors that we wait to read from
    writing: set[int] = set()  # the descriptors of the clients that we owe bytes
    while True:
        # When the system has no descriptor or memory for another client, accept_clients takes the
        # listening socket out of reading, and we try again after each pause.
        shortage = listener_fd not in reading
        try:
            readable, writable, _ = select.select(reading, writing, [], PAUSE if shortage else None)
        except OSError:  # There is no memory; or nothing to watch, which is an error on Windows.
            time.sleep(PAUSE)
            readable, writable = [], []
        for descriptor in readable + writable:  # No descriptor is in both.
            if descriptor == listener_fd:
                continue
            client = clients[descriptor]
            if not client.turn():
                del clients[descriptor]
                reading.discard(descriptor)
                writing.discard(descriptor)
            elif client.owed:
                reading.discard(descriptor)
                writing.add(descriptor)
            elif descriptor in writing:
                writing.remove(descriptor)
                reading.add(descriptor)
        # The listening socket comes last, because a client that has just disconnected makes room,
        # and a new one may get its descriptor.
        if listener_fd in readable or shortage:
            accept_clients(listener, clients, reading)


class Client:
    """A client: its socket, its address, its conversation, and the bytes that we owe it."""

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        self.sock = sock
        self.peer = peer
        self.conversation = Conversation()
        self.owed = b""
        log(f"{show(peer)} connected")

    def turn(self) -> bool:
        """Read and reply, or send more of what we owe. Return whether it is still connected."""
        end = ""
        try:
            if not self.owed:
                data = self.sock.recv(CHUNK)
                self.owed = self.conversation.feed(data) if data else self.conversation.end()
                if not data and not self.owed:  # If a last reply is owed, the next recv ends it.
                    end = "disconnected"
            sent = self.sock.send(self.owed)  # bytes that the kernel took, perhaps none
            self.owed = self.owed[sent:]
        except BlockingIOError:  # It could not be read, or written to, after all.
            pass
        except (OSError, MemoryError) as error:
            end = f"disconnected: {reason(error)}"
        if end:
            log(f"{show(self.peer)} {end}")
            with contextlib.suppress(OSError):
                self.sock.close()
        return not end


def accept_clients(listener: socket.socket, clients: dict[int, Client], reading: set[int]) -> None:
    """Accept the clients that wait. In a shortage, stop watching the listening socket."""
    listener_fd = listener.fileno()
    for _ in range(GROUP):
        full = len(clients) == MAX_CLIENTS
        try:
            sock, peer = listener.accept()
            sock.setblocking(False)
            select.select([listener_fd, *clients, sock.fileno()], [], [], 0)  # if it can watch them
        except BlockingIOError:  # Nobody waits any more.
            break
        except ConnectionError:  # It disconnected before we could accept it.
            continue
        except ValueError:  # It takes 512 on Windows, and no descriptor above 1,023 elsewhere.
            full = True
        except (OSError, MemoryError) as error:
            if listener_fd in reading:
                log(f"waiting: {reason(error)}")
            reading.discard(listener_fd)
            return
        if full:
            refuse(sock, peer)
        else:
            clients[sock.fileno()] = Client(sock, peer)
            reading.add(sock.fileno())
    reading.add(listener_fd)  # There is no shortage, or it has ended.


def refuse(sock: socket.socket, peer: Address) -> None:
    """Tell a client that the server is full, and close its connection."""
    with contextlib.suppress(OSError), sock:
        sock.setblocking(False)
        sock.send(b"error: server full\n")
        sock.shutdown(socket.SHUT_WR)
        # A close with unread bytes would be a reset, and the client might lose what we sent.
        sock.recv(65536)
    log(f"{show(peer)} refused: server full")


# --- The conversation: every byte comes back ----------------------------------------------------


class Conversation:
    """What one client says, which is also what it is told."""

    def feed(self, data: bytes) -> bytes:
        """Return what to send back for data, the next bytes from the client: the same."""
        return data

    def end(self) -> bytes:
        """Return what remains to be sent when the client has sent everything: nothing."""
        return b""


# --- The command line, and the log --------------------------------------------------------------


def main() -> None:
    """Read the command line, listen, say so, and serve until a signal ends the program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, whatever it waits for.
    if sys.platform != "win32":  # A terminal may have room, but not for a whole line of the log.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.ttyname(2), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK), 2)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-b", "--bind", metavar="ADDRESS", default="127.0.0.1")
    parser.add_argument("port", metavar="PORT", nargs="?", type=port_number, help="0: any free one")
    options = parser.parse_args()
    port = ask("Port", DEFAULT_PORT, port_number) if options.port is None else options.port
    address: Address = (options.bind, port)
    try:
        family, _, _, _, address = socket.getaddrinfo(options.bind, port, 0, socket.SOCK_STREAM)[0]
        listener = listen(family, address)
        address = listener.getsockname()
        log(f"{NAME} listening on {show(address)}", sys.stdout)
        serve(listener)
    except (OSError, UnicodeError) as error:
        sys.exit(f"{NAME}: cannot listen on {show(address)}: {reason(error)}")


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


def listen(family: int, address: Address) -> socket.socket:
    """Return a socket that listens at the address. Raises OSError."""
    listener = socket.socket(family)
    if os.name == "posix":  # On Windows, two servers could then share a port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # The connections inherit what follows (UNIX Network Programming, section 7.4).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # sends a small reply at once
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in TIMEOUTS.items():
        with contextlib.suppress(AttributeError, OSError):  # No system has all of these options.
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    listener.bind(address)
    listener.listen(BACKLOG)
    return listener


def show(address: Address) -> str:
    """Return a socket address as people write it: 127.0.0.1:10000, [::1]:10000."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason(error: BaseException) -> str:
    """Return what an error says, without its number: Address already in use."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def log(text: str, stream: TextIO = sys.stderr) -> None:
    """Write a line to the stream. Drop it if that would fail, or would have to wait."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = stream.fileno()
        try:  # Nobody may be reading the stream, and that must not stop the server.
            writable = select.select([], [descriptor], [], 0)[1]
        except OSError:  # On Windows, select takes sockets only.
            writable = [descriptor]
        if writable:
            os.write(descriptor, f"{text}\n".encode())


if __name__ == "__main__":
    main()
