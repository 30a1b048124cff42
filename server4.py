#!/usr/bin/env python3
"""An echo server for many clients at once: one process, one thread, select.

The model is that of server3.py, line for line: ask the kernel which sockets can be read or
written without waiting, give each of them one short turn, ask again. Only the conversation is
another: it has no lines, and gives back every byte as it came.

Read from the top: the model, the conversation, the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator

NAME = "server4"
DEFAULT_PORT = "10000"
BACKLOG = 1024  # clients that the kernel may keep waiting for accept
MAX_CLIENTS = 1000
FD_SETSIZE = 1024  # select(2) cannot watch this descriptor, nor any above
GROUP = 64  # clients who come in at a time, before those inside go on
PAUSE = 0.1  # seconds from try to try when there is no room, and from look to look for a signal
TURN = 65536  # bytes read at a turn, so also the most that we owe a client
# A client that vanished is noticed in 60 + 4 * 10 seconds, or when what it is owed has stayed
# unacknowledged for 100,000 milliseconds: tcp(7).
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 100_000}
Chats = dict[int, Iterator[bool]]  # by descriptor: select takes integers faster than sockets


# --- The model: a loop, and every client in one of two states -----------------------------------
#
# Either we wait to read from a client, or we owe it bytes and wait to send them. While we owe, we
# do not read. So a client that does not take what it is owed holds up nobody but itself, and costs
# little memory; its end, unless that is a reset, is seen only when it has everything.
#
# A chat is a generator: where that of server1.py waits, this one yields, and the loop takes the
# next step of it when there is something to do.


def serve(listener: socket.socket) -> None:
    """Serve those who come to the listening socket, for ever."""
    listener.setblocking(False)
    door = listener.fileno()
    reading: Chats = {}
    writing: Chats = {}
    pause = None
    while True:
        # The door comes last: who leaves in this round makes room for who comes.
        watched = [*reading] if pause else [*reading, door]
        readable, writable, _ = select.select(watched, writing, [], pause)
        pause = None
        for descriptor in writable + readable:
            if descriptor == door:
                pause = admit(listener, reading, writing)
                continue
            client = reading.pop(descriptor, None) or writing.pop(descriptor)
            owed = next(client, None)  # do we owe it bytes? None: it has left
            if owed is not None:
                (writing if owed else reading)[descriptor] = client


def chat(sock: socket.socket, peer: tuple) -> Iterator[bool]:
    """Give a client back what it sends until it leaves; yield at each wait whether we owe it."""
    log(f"{show(peer)} came")
    reason = ""
    owed = b""
    with sock:
        sock.setblocking(False)
        try:
            while True:
                yield bool(owed)
                try:
                    owed = owed or sock.recv(TURN)
                    if not owed:  # its end
                        break
                    owed = owed[sock.send(owed) :]
                except BlockingIOError:  # nothing had come, or nothing was taken, after all
                    pass
        except OSError as error:
            reason = f": {error.strerror}"
    log(f"{show(peer)} left{reason}")


def admit(listener: socket.socket, reading: Chats, writing: Chats) -> float | None:
    """Let in some who wait; return the seconds to pause if there was no descriptor for one."""
    for _ in range(GROUP):
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            break
        except ConnectionAbortedError:
            continue
        except OSError as error:
            log(f"waiting: {error}")
            return PAUSE
        if len(reading) + len(writing) == MAX_CLIENTS or sock.fileno() >= FD_SETSIZE:
            refuse(sock, peer)
        else:
            reading[sock.fileno()] = client = chat(sock, peer)
            next(client)  # to its first wait
    return None


def refuse(sock: socket.socket, peer: tuple) -> None:
    """Tell a client that the server is full, and close its socket."""
    with sock, contextlib.suppress(OSError):
        sock.send(b"error: server full\n")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536, socket.MSG_DONTWAIT)  # bytes left unread would turn the close into a reset
    log(f"{show(peer)} refused: server full")


# --- The command line, and the log --------------------------------------------------------------


def main() -> None:
    """Read the command line, listen, say so, and serve until Ctrl-C or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # the kernel closes the connections
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-b", "--bind", metavar="ADDRESS", default="127.0.0.1")
    parser.add_argument("port", metavar="PORT", nargs="?", type=port_number, help="0: any free one")
    options = parser.parse_args()
    port = ask("Port", DEFAULT_PORT, port_number) if options.port is None else options.port
    address = options.bind, port
    try:
        family, _, _, _, address = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        listener = prepare(family)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.exit(f"{NAME}: cannot listen on {show(address)}: {reason}")
    log(f"{NAME} listening on {show(listener.getsockname())}", sys.stdout)
    # Python runs a handler between two of its steps. After a signal that comes just before a call
    # that waits, it would wait for the call to return: so a timer interrupts every call. It starts
    # no earlier: while Python exits, it has given up the handler, and the timer would kill it.
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, PAUSE, PAUSE)
    serve(listener)


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


def prepare(family: int) -> socket.socket:
    """Return a stream socket that is ready to be bound, and to listen."""
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What follows is for the connections: they inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return listener


def show(address: tuple) -> str:
    """Return a socket address as people write it: 127.0.0.1:10000, [::1]:10000."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@functools.lru_cache(maxsize=1)  # not for speed: it drops a line like the last, as of waiting
def log(text: str, stream: io.TextIOBase = sys.stderr) -> None:
    """Write a line to the stream; drop it if nobody reads: closed, full, or a broken pipe."""
    with contextlib.suppress(OSError, TypeError):
        if select.select([], [stream], [], 0)[1]:
            os.write(stream.fileno(), f"{text}\n".encode())


if __name__ == "__main__":
    main()
