#!/usr/bin/env python3
"""A calculator for many clients at once: a thread for every client.

The model: the main thread accepts clients. Each gets a thread, which chats with it as server1 does.

What it costs: memory for every thread, and time to switch between them. Many compute no faster than
one, because of Python's global interpreter lock. In free-threaded builds they use all processors.
"""

import _thread
import argparse
import contextlib
import math
import operator
import re
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

NAME = "server2"
MAX_CLIENTS = 1000
CHUNK = 512  # bytes to read at a time: few, since replies may be a hundred times as long
MAX_LINE = 1024  # bytes in a line, without its end
TOO_BIG = 10**1000  # the first integer of more than 1,000 digits


# --- The model: every client in a thread of its own ---------------------------------------------
PLACES = threading.Semaphore(MAX_CLIENTS)  # counts free places: acquire() takes one, if there is


def serve(listener: socket.socket) -> None:
    """Serve all clients that connect, each in a thread of its own, for ever."""
    while True:
        sock, peer = accept(listener)
        if not PLACES.acquire(blocking=False):  # All are taken.
            refuse(sock, peer, "server full")
            continue
        try:
            # Not Thread.start(): it waits for the new thread's first turn, and so newcomers starve
            # beside hundreds of busy threads.
            _thread.start_new_thread(chat, (sock, peer))
        except RuntimeError as error:  # The system has no more threads.
            PLACES.release()
            refuse(sock, peer, str(error))


def chat(sock: socket.socket, peer: Any) -> None:
    """Answer a client's lines until it disconnects. Then give back its place."""
    try:
        log(f"{show(peer)} connected")
        conversation = Conversation()
        while data := sock.recv(CHUNK):  # b"" means that the client has closed its sending side.
            sock.sendall(conversation.feed(data))
        sock.sendall(conversation.end())
        log(f"{show(peer)} disconnected")
    except OSError as error:  # The connection is lost.
        log(f"{show(peer)} disconnected: {reason(error)}")
    finally:
        PLACES.release()  # first, because a client that sees our close may connect again at once
        sock.close()


def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Wait for a client. Return the socket of the connection to it, and its address."""
    while True:
        try:
            return listener.accept()
        except ConnectionError:  # The client has left already.
            continue
        except OSError as error:  # All descriptors are in use, for example.
            log(f"waiting: {reason(error)}")
            time.sleep(0.1)


def refuse(sock: socket.socket, peer: Any, why: str) -> None:
    """Tell a client that the server is full, and close its connection, all without waiting."""
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # It has left already, or recv() finds nothing to read.
        sock.send(b"error: server full\n")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536)  # To close with unread input is a reset, which can destroy our line.
    sock.close()
    log(f"{show(peer)} refused: {why}")


# --- The conversation: one line in, one line out ------------------------------------------------


class Conversation:
    """What one client says, cut into lines, and the replies to them. It knows no socket."""

    def __init__(self) -> None:
        self.partial = b""  # the beginning of a line whose end is still to come
        self.skipping = False  # whether we skip the rest of a line that is too long

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes from the client; return replies to the lines that they complete."""
        if self.skipping:
            _, newline, data = data.partition(b"\n")
            if not newline:  # The line goes on.
                return b""
            self.skipping = False
        # In b"1+1\n2+", the line is b"1+1", and the partial line is b"2+".
        *lines, self.partial = (self.partial + data).split(b"\n")
        if len(self.partial) > MAX_LINE:  # reply() gives the error, before the line ends.
            lines.append(self.partial)
            self.partial = b""
            self.skipping = True
        return b"".join(map(reply, lines))

    def end(self) -> bytes:
        """Return the reply to a last line that has no end, as if it had one."""
        return self.feed(b"\n") if self.partial else b""


def reply(line: bytes) -> bytes:
    """Return the reply to a line, which is a line too: the value, or an error and its reason."""
    if len(line) > MAX_LINE:
        return b"error: line longer than %d bytes\n" % MAX_LINE
    try:
        value = evaluate(line.decode(errors="replace"))
        return f"{value!r}\n".encode()
    except ZeroDivisionError:
        return b"error: division by zero\n"
    except OverflowError:
        return b"error: number too large\n"
    except RecursionError:  # Each "(" is a call within a call, and Python limits their number.
        return b"error: too many nested parentheses\n"
    except ValueError as error:
        return f"error: {error}\n".encode()


# --- The arithmetic: recursive descent, a function for each rule of the grammar -----------------
#     expression = term, then any number of: + or -, and a term
#     term       = factor, then any number of: * or / or // or %, and a factor
#     factor     = signs and a factor, or an operand, or an operand ** a factor
#     operand    = a number, or ( an expression )

SUMS = {"+": operator.add, "-": operator.sub}
PRODUCTS = {"*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod}
END = "end of line"  # the last token, so that there is always a next one
TOKENS = re.compile(  # findall() skips what is in no token: white space, the byte order mark.
    r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"  # a number: 7, 2., .5, 1e-3
    r"|\*\*|//|[-+*/%()]"  # or an operator, or a parenthesis
    r"|\w+|[^\s\ufeff]"  # or what will be an error: a word, any other character
)


def evaluate(text: str) -> float:
    """Return the value of an expression, an int or a finite float. Raises what reply() catches."""
    tokens = TOKENS.findall(text)
    tokens.append(END)
    tokens.reverse()  # so that pop() takes the next one
    value = expression(tokens)
    if tokens[-1] != END:
        raise ValueError(f"expected an operator, found {tokens[-1]!a}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the result is not a finite number")
    return value


def expression(tokens: list[str]) -> float:
    """Take the tokens of an expression from the list, and return its value."""
    value = term(tokens)
    while tokens[-1] in SUMS:
        function = SUMS[tokens.pop()]
        value = function(value, term(tokens))
        if type(value) is int and abs(value) >= TOO_BIG:
            raise OverflowError
    return value


def term(tokens: list[str]) -> float:
    """Take the tokens of a term from the list, and return its value."""
    value = factor(tokens)
    while tokens[-1] in PRODUCTS:
        function = PRODUCTS[tokens.pop()]
        value = function(value, factor(tokens))
        if type(value) is int and abs(value) >= TOO_BIG:
            raise OverflowError
    return value


def factor(tokens: list[str]) -> float:
    """Take the tokens of a factor from the list, and return its value."""
    token = tokens.pop()
    if token.isdecimal() and token.isascii():  # There are digits of other scripts, too.
        value: float = int(token)
        if value >= TOO_BIG:
            raise OverflowError
    elif token == "(":
        value = expression(tokens)
        if (token := tokens.pop()) != ")":
            raise ValueError(f"expected an operator or ')', found {token!a}")
    elif token in SUMS:  # a sign, or many: a call for each could be too many calls for Python
        while tokens[-1] in SUMS:
            token += tokens.pop()
        return -factor(tokens) if token.count("-") % 2 else factor(tokens)
    elif token[0] in ".0123456789" and token != ".":
        value = float(token)
    else:
        raise ValueError(f"expected a number, found {token!a}")
    if tokens[-1] == "**":  # 2**3**2 is 2**(3**2), and -2**2 is -(2**2).
        tokens.pop()
        value = power(value, factor(tokens))
    return value


def power(base: float, exponent: float) -> float:
    """Return base**exponent. Raises OverflowError before it computes too big an integer."""
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        if base in (-1, 0, 1):  # The exponent may be huge: all that matters is whether it is odd.
            return base if exponent % 2 else base * base
        if exponent * math.log10(abs(base)) > 1001:  # about the number of digits
            raise OverflowError
    result: complex = base**exponent  # (-2)**0.5 is complex.
    if isinstance(result, complex):
        raise ValueError("the result is not a real number")
    if isinstance(result, int) and abs(result) >= TOO_BIG:
        raise OverflowError
    return result


# --- The command line, and the log --------------------------------------------------------------


def main() -> None:
    """Read the command line, listen, say so, and serve until a signal ends the program."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # not for a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program at once.
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-b", "--bind", metavar="ADDRESS", default="127.0.0.1")
    parser.add_argument("port", metavar="PORT", nargs="?", help="0: any free one")
    options = parser.parse_args()
    try:
        port = port_number(ask("Port", "10000") if options.port is None else options.port)
    except (OSError, ValueError) as error:
        sys.exit(f"{NAME}: {error}")
    listener = listen(options.bind, port)
    print(f"{NAME} listening on {show(listener.getsockname())}", flush=True)
    serve(listener)


def ask(name: str, default: str) -> str:
    """Ask for a value. Return the answer, or the default if it is blank, or if there is none."""
    stream = sys.stdout if sys.stdout and sys.stdout.isatty() else sys.stderr
    if stream:  # A closed stream is None, and print() would take standard output instead.
        print(f"{name} [{default}]: ", end="", file=stream, flush=True)
    return (sys.stdin.readline() if sys.stdin else "").strip() or default


def port_number(text: str) -> int:
    """Return the port that text names. Raises ValueError, with the reason, if it names none."""
    if not (text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"{text!a} is not a port (a number from 0 to 65535)")
    return int(text)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises SystemExit, with the reason, if that fails."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        if sys.platform != "win32":  # There, it would let two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # if it was just used
        # Accepted sockets inherit these options (UNIX Network Programming, section 7.4).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # sends at once
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # notices vanished clients
        for option in ("TCP_KEEPIDLE", "TCP_KEEPALIVE"):  # after 120 seconds; two names for it
            if hasattr(socket, option):
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 120)
        listener.bind(address)
        listener.listen(1024)  # clients that the kernel keeps for us until we accept them
        return listener
    except (OSError, ValueError) as error:  # ValueError: no host can have such a name.
        sys.exit(f"{NAME}: cannot listen on {show((host, port))}: {reason(error)}")


def show(address: Any) -> str:
    """Return a socket's address as people write it: 127.0.0.1:10000, [::1]:10000."""
    host, port = address[:2] if address else ("unknown", 0)  # macOS may have none.
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason(error: Exception) -> str:
    """Return what an error says, without its number: Address already in use."""
    return getattr(error, "strerror", None) or str(error)


def log(text: str) -> None:
    """Write a line to standard error. Drop it if that would fail, or would have to wait."""
    with contextlib.suppress(OSError, TypeError, ValueError):  # select may not take it.
        if not select.select([], [sys.stderr], [], 0)[1]:
            return  # It is a full pipe that nobody reads: to write would wait for ever.
    with contextlib.suppress(OSError, AttributeError, ValueError):  # It is closed.
        sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
