#!/usr/bin/env python3
"""A calculator for one client at a time: blocking sockets.

The model: wait for a client, talk with it until it leaves, wait for the next. Each call waits
until it is done, so the program reads like the conversation it holds. The price: nobody else
is served meanwhile. They do not wait in a queue either: when the server has a client it stops
listening, so the kernel resets those who had queued, and refuses those who come.

Read from the top: the model, the conversation, the arithmetic, the command line. Only the
model, its imports and constants differ from server2.py and server3.py, and a lock in server2's log.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import operator
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

NAME = "server1"
DEFAULT_PORT = "10000"
BACKLOG = 1024  # clients that the kernel may keep waiting for accept
PAUSE = 0.1  # seconds from try to try when there is no room, and from look to look for a signal
TURN = 1024  # bytes read at a time: the replies to so many take 0.6 MB at most
# A client that vanished is noticed in 60 + 4 * 10 seconds, or when what it is owed has stayed
# unacknowledged for 100,000 milliseconds: tcp(7).
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 100_000}
MAX_LINE = 1024  # bytes, without the line's end
TOO_LONG = MAX_LINE + len(b"\r") + 1  # bytes of a line that are enough to refuse it
MAX_NESTING = 200  # parentheses within parentheses, as in Python
TOO_BIG = 10**4300  # the first integer of more digits than Python prints
MAX_BITS = 332_193  # 100,000 digits: of all powers and products of a line together
LINUX = sys.platform == "linux"


# --- The model: one client, then the next -------------------------------------------------------


def serve(listener: socket.socket) -> None:
    """Serve those who come to the listening socket, one at a time, for ever."""
    family, address = listener.family, listener.getsockname()
    if LINUX:
        # While we serve, our listener is closed, and another program could take the port. So the
        # holder stays bound to it, and never listens. Without SO_REUSEADDR it shuts out all but
        # sockets of the same user with SO_REUSEPORT: the listeners that we bind anew.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = insist(lambda: bind_again(family, address))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    while True:
        sock, peer = insist(listener.accept)
        listener.close()
        with sock:
            chat(sock, peer)
            # Listen before the client sees that we close: it may come again at once.
            listener = insist(lambda: bind_again(family, address))
            listener.listen(BACKLOG)


def bind_again(family: int, address: tuple) -> socket.socket:
    """Return a socket bound to an address that other sockets of ours have; raises OSError."""
    sock = prepare(family)
    if LINUX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    return sock


def chat(sock: socket.socket, peer: tuple) -> None:
    """Talk with a client until it leaves."""
    log(f"{show(peer)} came")
    reason = ""
    partial = b""
    try:
        while data := sock.recv(TURN) or (partial and b"\n"):  # at its end, as if LF came
            lines, partial = cut(partial, data)
            sock.sendall(b"".join(map(reply, lines)))
    except OSError as error:
        reason = f": {error.strerror}"
    log(f"{show(peer)} left{reason}")


def insist(attempt: Callable[[], object]) -> object:
    """Return what attempt() returns; while it fails, as for want of a descriptor, wait."""
    while True:
        try:
            return attempt()
        except ConnectionAbortedError:  # it left before we could accept it
            continue
        except OSError as error:
            log(f"waiting: {error}")
            time.sleep(PAUSE)


# --- The conversation: one line in, one line out ------------------------------------------------
#
# It turns bytes into lines and lines into replies, and knows no socket. So servers 1, 2 and 3 hold
# the very same one, and a test can talk with it without a network.


def cut(partial: bytes, data: bytes) -> tuple[list[bytes], bytes]:
    """Cut data, which follows a partial line, into lines without LF; return a new partial line too.

    Of a partial line that is too long, TOO_LONG bytes are kept. It is returned as soon as it has
    so many: it gets its one error at once, and the rest of it is dropped.
    """
    returned = len(partial) == TOO_LONG
    *lines, partial = (partial + data).split(b"\n")
    partial = partial[:TOO_LONG]
    if len(partial) == TOO_LONG:
        lines.append(partial)
    return lines[1:] if returned else lines, partial


def reply(line: bytes) -> bytes:
    """Return the reply to a line, itself a line: the value, or an error and the reason."""
    line = line.removesuffix(b"\r")
    if len(line) > MAX_LINE:
        return b"error: line longer than %d bytes\n" % MAX_LINE
    try:
        return b"%a\n" % evaluate(line.decode(errors="replace"))  # %a: its repr
    except ZeroDivisionError:
        return b"error: division by zero\n"
    except OverflowError:
        return b"error: number too large\n"
    except ValueError as error:
        return b"error: %s\n" % str(error).encode()


# --- The arithmetic: Dijkstra's shunting yard ---------------------------------------------------
#
# From left to right: an operator waits, with its left operand, until one comes that binds no
# tighter; then its right operand is complete, and it is applied. In 2-3*4, - waits with 2, and *,
# which binds tighter, with 3; at the end * is applied to 3 and 4, then - to 2 and 12. The last that
# waits is in three variables, level, apply and left; the others are on a stack. An open parenthesis
# waits for its partner at level 0, and no operator gets past it. The whole line stands in a pair:
# OPENED to start with, and a ) behind it. A sign waits as -1 *, or 1 *.
#
# OPERATORS has for each how tightly it binds to its left, how tightly to its right (its level
# while it waits), and its function. ** binds tighter to its left: 2**3**2 is 2**(3**2). While at
# work, ** is ↑ and // is ÷, one character each.

OPENED = (0, None, None)
PREFIXES = {"(": OPENED, "-": (3, operator.mul, -1), "+": (3, operator.mul, 1)}
OPERATORS = {
    "+": (1, 1, operator.add),
    "-": (1, 1, operator.sub),
    "*": (2, 2, operator.mul),
    "/": (2, 2, operator.truediv),
    "÷": (2, 2, operator.floordiv),
    "%": (2, 2, operator.mod),
    "↑": (5, 4, operator.pow),
    ")": (0, 0, None),
}
SPACED = [(symbol, f" {symbol} ") for symbol in "+-*/÷%↑()"]
TOKENS = re.compile(r"(?:[eE][-+]|[^-+*/÷%↑() ])+|[-+*/÷%↑()]").findall
NUMBER = re.compile(r"0+|[1-9]\d*|(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?").fullmatch


def evaluate(text: str) -> float:
    """Return the value of an expression, an int or a finite float: the one that Python gives.

    Raises ValueError with the reason, ZeroDivisionError, or OverflowError: the value, or one on the
    way to it, is out of our bounds or Python's.
    """
    text = text.replace("\t", " ")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("only printable ASCII characters are understood")
    text = text.replace("**", "↑").replace("//", "÷")
    operators = bounded() if "↑" in text else OPERATORS  # else no integer outgrows the line
    if "e" in text or "E" in text:  # an exponent may have a sign
        tokens = TOKENS(text)
    else:  # the same, faster
        for symbol, spaced in SPACED:
            text = text.replace(symbol, spaced)
        tokens = text.split()
    tokens.append(")")
    waiting = [OPENED]  # for the last ) to take away, and no other
    level, apply, left = OPENED
    value = None  # an operand is to come
    nesting = 0
    try:
        for token in tokens:
            if value is None:
                if token.isdigit() and token >= "1":  # no leading zero: most are so plain
                    value = int(token)
                elif "." in token and token.replace(".", "", 1).isdigit():  # or so
                    value = float(token)
                elif token in PREFIXES:
                    waiting.append((level, apply, left))
                    level, apply, left = PREFIXES[token]
                    nesting += token == "("
                    if nesting > MAX_NESTING:
                        raise ValueError("too many nested parentheses")
                elif token in OPERATORS:
                    raise ValueError("an operand is missing")
                elif NUMBER(token):
                    value = int(token) if token.isdigit() else float(token)
                else:
                    raise ValueError(f"{token!a} is not a number")
                continue
            binds_left, binds_right, function = operators[token]
            while level > binds_left:
                value = apply(left, value)
                level, apply, left = waiting.pop()
            if level < binds_left:
                waiting.append((level, apply, left))
                level, apply, left = binds_right, function, value
                value = None
            elif function:  # one that binds alike takes its place
                apply, left = function, apply(left, value)
                value = None
            else:  # the parenthesis meets its partner
                level, apply, left = waiting.pop()
                nesting -= 1
    except KeyError:
        raise ValueError("an operator is missing") from None
    except IndexError:  # one ) too many
        raise ValueError("a parenthesis is missing") from None
    if waiting:  # one ( too many
        raise ValueError("a parenthesis is missing")
    if not abs(value) < TOO_BIG:  # or it is infinite, or not a number
        raise OverflowError
    return value


def bounded() -> dict[str, tuple]:
    """Return OPERATORS with * and ** bounded, each and together, so that no line is costly."""
    bits = 0  # of all their results

    def check(value: complex) -> float:
        """Return value; raises OverflowError if it is out of bounds, ValueError if complex."""
        nonlocal bits
        if type(value) is complex:
            raise ValueError("the result is not a real number")
        if type(value) is int:
            bits += value.bit_length()
            if abs(value) >= TOO_BIG or bits > MAX_BITS:
                raise OverflowError
        return value

    def power(base: float, exponent: float) -> float:
        """Return base ** exponent; raises what that and check raise."""
        if type(base) is type(exponent) is int and exponent > 0:
            if (base.bit_length() - 1) * exponent > TOO_BIG.bit_length():
                raise OverflowError  # before it is computed
            if -1 <= base <= 1:  # then nothing counts but whether the exponent is odd
                exponent = 2 - exponent % 2
        return check(base**exponent)

    return {**OPERATORS, "*": (2, 2, lambda left, right: check(left * right)), "↑": (5, 4, power)}


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
