#!/usr/bin/env python3
"""A calculator for many clients at once: one thread, and select.

The model: ask the kernel which sockets can be read from or written to without waiting, take one
short turn with each of them, and ask again. One thread does everything, so there is nothing to
lock, and a client costs little more than its socket.

What it costs: while one client has its turn all others wait, so turns have to be short. And
select looks at every descriptor (the number that the kernel gives to a socket) in every call.
"""

import argparse
import contextlib
import operator
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Optional, TextIO

NAME = "server3"
DEFAULT_PORT = 10000
BACKLOG = 1024  # connections that the kernel keeps until we accept them, or close the listener
MAX_CLIENTS = 511 if sys.platform == "win32" else 1000  # On Windows, select takes 512 sockets.
MAX_DESCRIPTOR = 1023  # the highest that select can watch on other systems
GROUP = 64  # clients to accept in a row, before the others get their turn
CHUNK = 512  # bytes to read at a time: few, because others wait while we compute the replies
PAUSE = 0.01  # seconds until we try again when the system has run out of something
MAX_LINE = 1024  # bytes, without the end of the line
TOO_BIG = 10**1000  # the first integer of more than 1,000 digits
TIMEOUTS = {  # A silent client that has vanished is noticed after at most 60 + 10 * 5 seconds.
    "TCP_KEEPIDLE": 60,  # seconds of silence until the kernel probes whether it is still there
    "TCP_KEEPALIVE": 60,  # the same, as macOS calls it
    "TCP_KEEPINTVL": 5,  # seconds between probes; systems send 8 to 10 of them
    "TCP_USER_TIMEOUT": 90_000,  # milliseconds until Linux ends it if it takes nothing that we send
}
Address = tuple[Any, ...]  # a host and a port, and two numbers more for IPv6


# --- The model: a loop, and every client in one of two states -----------------------------------
#
# We read what a client has sent, and try to send the replies at once. If the kernel does not take
# all of them, we owe the client the rest, and wait until it can be written to. We read nothing from
# a client that we owe bytes, so one that never reads its replies costs little memory.


def serve(listener: socket.socket) -> None:
    """Serve all clients that connect, for ever."""
    listener.setblocking(False)  # When no more clients wait, accept() must fail, and not wait.
    listener_fd = listener.fileno()
    clients: dict[int, Client] = {}  # by descriptor: select takes numbers faster than sockets
    reading = {listener_fd}  # the descriptors that we wait to read from
    writing: set[int] = set()  # the descriptors of the clients that we owe bytes
    waiting = False  # whether the last accept() has failed, so that we log it only once
    while True:
        readable, writable = wait(reading, writing)
        for descriptor in readable + writable:  # No descriptor is in both.
            if descriptor == listener_fd:
                continue  # New clients come last: those that leave make room for them.
            client = clients[descriptor]
            if not client.turn():
                del clients[descriptor]
                reading.discard(descriptor)
                writing.discard(descriptor)
            elif client.owed:  # The kernel has no room: the client reads slowly.
                reading.discard(descriptor)
                writing.add(descriptor)
            elif descriptor in writing:  # The kernel has taken all that we owed.
                writing.discard(descriptor)
                reading.add(descriptor)
            # Otherwise, we go on reading from it.
        if listener_fd in readable:
            try:
                accept_clients(listener, clients, reading)
                waiting = False
            except (OSError, MemoryError) as error:
                if not waiting:
                    log(f"waiting: {reason(error)}")
                waiting = True
                # The new client still waits, so select would return at once, again and again. So we
                # wait until one of the others is ready (the next round sees which), at most PAUSE.
                wait(reading - {listener_fd}, writing, PAUSE)


def wait(
    reading: set[int], writing: set[int], timeout: Optional[float] = None
) -> tuple[list[int], list[int]]:
    """Wait until descriptors are ready, at most timeout seconds. Return those of each set."""
    try:
        readable, writable, _ = select.select(reading, writing, [], timeout)
        return readable, writable
    except (OSError, MemoryError):  # No memory. (Or, on Windows, nothing to wait for.)
        time.sleep(PAUSE)
        return [], []


class Client:
    """A client: its socket, its address, its conversation, and the bytes that we owe it."""

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.peer = peer
        self.conversation = Conversation()
        self.owed = b""
        self.finished = False  # whether it has sent everything; it may still read what we owe it
        log(f"{show(peer)} connected")

    def turn(self) -> bool:
        """Read and reply, or send more of what we owe. Return whether it is still connected."""
        lost = ""
        try:
            if not self.owed:
                data = self.sock.recv(CHUNK)
                if data:
                    self.owed = self.conversation.feed(data)
                else:  # It has closed its sending side.
                    self.owed = self.conversation.end()
                    self.finished = True
            if self.owed:
                sent = self.sock.send(self.owed)  # bytes that the kernel took, perhaps not all
                self.owed = self.owed[sent:]
            if self.owed or not self.finished:
                return True
            # Otherwise it has sent everything, and the kernel has taken all its replies.
        except BlockingIOError:  # Nothing to read after all, or no room: we still owe the same.
            return True
        except (OSError, MemoryError) as error:  # The connection is lost, or no memory is left.
            lost = f": {reason(error)}"
        log(f"{show(self.peer)} disconnected{lost}")
        with contextlib.suppress(OSError):  # If close() fails, it is closed all the same.
            self.sock.close()
        return False


def accept_clients(listener: socket.socket, clients: dict[int, Client], reading: set[int]) -> None:
    """Accept the clients that wait. Raises OSError or MemoryError if the system has no room."""
    for _ in range(GROUP):
        try:
            sock, peer = listener.accept()
        except BlockingIOError:  # No more clients wait.
            return
        except ConnectionError:  # It disconnected before we could accept it.
            continue
        watchable = sys.platform == "win32" or sock.fileno() <= MAX_DESCRIPTOR
        if watchable and len(clients) < MAX_CLIENTS:
            clients[sock.fileno()] = Client(sock, peer)
            reading.add(sock.fileno())
        else:
            refuse(sock, peer)


def refuse(sock: socket.socket, peer: Address) -> None:
    """Tell a client that the server is full, without waiting, and close its connection."""
    with contextlib.suppress(OSError), sock:
        sock.setblocking(False)
        sock.send(b"error: server full\n")
        sock.shutdown(socket.SHUT_WR)
        # If we closed the socket with unread input, the kernel would send a reset, and the client
        # might not see our line. If there is none yet, recv raises BlockingIOError, an OSError.
        sock.recv(65536)
    log(f"{show(peer)} refused: server full")


# --- The conversation: one line in, one line out ------------------------------------------------
#
# It knows no socket: bytes come in, and bytes go out. So servers 1 to 3 are the same from here on.


class Conversation:
    """What one client says, cut into lines, and the replies to them."""

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
        if len(self.partial) > MAX_LINE + 1:  # The last byte may be the CR before a LF to come.
            lines.append(self.partial)  # reply() gives the error, before the line ends.
            self.partial = b""
            self.skipping = True
        return b"".join(map(reply, lines))

    def end(self) -> bytes:
        """Return the reply to a last line that has no end, as if it had one."""
        return self.feed(b"\n") if self.partial else b""


def reply(line: bytes) -> bytes:
    """Return the reply to a line, which is a line too: the value, or an error and its reason."""
    line = line.removesuffix(b"\r")
    if len(line) > MAX_LINE:
        return b"error: line longer than %d bytes\n" % MAX_LINE
    try:
        value = evaluate(line.decode(errors="replace"))
        return f"{value!r}\n".encode()
    except ZeroDivisionError:
        return b"error: division by zero\n"
    except OverflowError:
        return b"error: number too large\n"
    except RecursionError:  # A thousand "(" are more calls within calls than Python allows.
        return b"error: too many nested parentheses\n"
    except ValueError as error:
        return f"error: {error}\n".encode()


# --- The arithmetic: precedence climbing --------------------------------------------------------
#
# A sum consists of products, a product consists of powers, and one function evaluates them all. It
# is told the lowest precedence that it may take: SUM for a sum, PRODUCT for a product.

SUM, PRODUCT, POWER = 1, 2, 3


def power(base: float, exponent: float) -> float:
    """Return base**exponent. Raises OverflowError before it computes an integer that is too big."""
    # You may skip this block: it keeps huge numbers from taking long.
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        if -1 <= base <= 1:  # It matters only whether the exponent is even. A huge one is slow.
            exponent = 2 + exponent % 2
        # 9 has 4 bits, so it is at least 2**3, and 9**5 at least 2**(3*5). If that is too big, so
        # is 9**5. If not, expression() checks the result.
        if (base.bit_length() - 1) * exponent > TOO_BIG.bit_length():
            raise OverflowError
    result: complex = base**exponent  # (-2)**0.5 is complex.
    if isinstance(result, complex):
        raise ValueError("the result is not a real number")
    return result


# operator: its precedence, the lowest precedence inside its right operand, its function
# Most group left to right: the right operand of - may be 3*4, but not 3-4, so 2-3-4 is (2-3)-4. **
# groups right to left: its right operand may be 3**2, so 2**3**2 is 2**(3**2).
OPERATORS: dict[str, tuple[int, int, Callable[[Any, Any], Any]]] = {
    "+": (SUM, PRODUCT, operator.add),
    "-": (SUM, PRODUCT, operator.sub),
    "*": (PRODUCT, POWER, operator.mul),
    "/": (PRODUCT, POWER, operator.truediv),
    "//": (PRODUCT, POWER, operator.floordiv),
    "%": (PRODUCT, POWER, operator.mod),
    "**": (POWER, POWER, power),
}
SIGNS = {"+", "-"}
NUMBER_STARTS = "0123456789."
END = "the end of the line"  # the last token, so that there is always a next one
# "2**.5+x" has the tokens "2", "**", ".5", "+" and "x". At each place the first of these matches:
# a number, an operator, a parenthesis, a word, any other character but space and tab. The operators
# are in reverse order, so that ** is tried before *.
NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
SYMBOLS = "|".join(re.escape(symbol) for symbol in sorted(OPERATORS, reverse=True))
TOKENS = re.compile(rf"{NUMBER}|{SYMBOLS}|[()]|\w+|[^ \t]")


def evaluate(text: str) -> float:
    """Return the value of an expression, an int or a finite float, as Python has it.

    Raises ValueError with the reason, ZeroDivisionError, OverflowError or RecursionError.
    """
    tokens = [*TOKENS.findall(text), END]
    tokens.reverse()  # so that pop() takes the next one
    value = expression(tokens, SUM)
    if tokens[-1] != END:
        raise syntax_error("operator", tokens[-1])
    if not abs(value) < TOO_BIG:  # Infinity is not less, and nan never is.
        raise OverflowError
    return value


def expression(tokens: list[str], lowest: int) -> float:
    """Take an operand, then operators and their right operands. Return the value.

    At an operator below the precedence lowest it stops, and leaves that to its caller:

    2-3*4: expression(SUM) takes 2 and -, and expression(PRODUCT) takes the right operand, 3*4.
    2-3-4: expression(SUM) takes 2 and -, and expression(PRODUCT) takes only 3, because - is below
           PRODUCT. So expression(SUM) has the value of 2-3, and goes on with - and 4.
    2**3**2: the right operand of ** may contain **, so this is 2**(3**2).
    -2**2: the operand of a sign may contain **, so this is -(2**2).
    -2*3: the operand of a sign may not contain *, so this is (-2)*3.
    """
    token = tokens.pop()
    if token.isdigit() and token.isascii():  # not "²"
        value: float = int(token)
        if value >= TOO_BIG:
            raise OverflowError
        if token[0] == "0" and value:  # Python refuses 007, too.
            raise ValueError(f"{token} begins with a zero")
    elif token == "(":
        value = expression(tokens, SUM)
        if (token := tokens.pop()) != ")":
            raise syntax_error("operator", token)
    elif token in SIGNS:
        sign = 1 if token == "+" else -1
        while tokens[-1] in SIGNS:  # not by recursion: a line may hold a thousand signs
            sign *= 1 if tokens.pop() == "+" else -1
        value = sign * expression(tokens, POWER)
    elif token == ".":
        raise ValueError("'.' is not a number")
    elif token[0] in NUMBER_STARTS:
        value = float(token)
    else:
        raise syntax_error("operand", token)
    while tokens[-1] in OPERATORS:
        precedence, right_lowest, function = OPERATORS[tokens[-1]]
        if precedence < lowest:
            break
        tokens.pop()
        value = function(value, expression(tokens, right_lowest))
        if type(value) is int and abs(value) >= TOO_BIG:  # Infinity may pass: 3 / 1e999 is 0.0.
            raise OverflowError
    return value


def syntax_error(wanted: str, token: str) -> ValueError:
    """Return the error for a token that stands where an operand or an operator is wanted."""
    if wanted == "operator" and token in (")", END):  # in "1)" and "(1"
        return ValueError("a parenthesis is missing")
    if token in OPERATORS or token in ("(", ")", END) or token[0] in NUMBER_STARTS:
        return ValueError(f"an {wanted} is missing before {token}")  # in "1+" and "1 2"
    return ValueError(f"{token!r} is not understood")  # in "2^3"


# --- The command line, and the log: the same in all four servers --------------------------------


def main() -> None:
    """Read the command line, listen, say so, and serve until a signal ends the program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, on Windows too.
    reopen_terminal()
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
    except (OSError, ValueError) as error:  # ValueError: no host can have such a name.
        sys.exit(f"{NAME}: cannot listen on {show(address)}: {reason(error)}")


def reopen_terminal() -> None:
    """If standard error is a terminal, let log() fail rather than wait for it.

    You may skip this: it is not about networks.

    A terminal that nobody reads fills up. While it has room for half a line, select says that it is
    writable, and the write of a line waits. O_NONBLOCK prevents that. If we set it on 2, standard
    error, the shell would have it, too, because it uses the same open file. So we open another one.
    """
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # Standard error is no terminal.
            terminal = os.open(os.ttyname(2), os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(terminal, 2)  # From now on, 2 stands for the new open file.
            os.close(terminal)


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


def listen(family: int, address: Address) -> socket.socket:
    """Return a socket that listens at the address. Raises OSError."""
    listener = socket.socket(family)
    if sys.platform != "win32":  # On Windows, this option would let two servers share a port.
        # We want to listen even if the port still has connections, perhaps in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit the options below (UNIX Network Programming, section 7.4).
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
    if not address:  # macOS may have none for a client that disconnects before we accept it.
        return "unknown"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason(error: BaseException) -> str:
    """Return what an error says, without its number: Address already in use."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def log(text: str, stream: TextIO = sys.stderr) -> None:
    """Write a line to the stream. Drop it if that would fail, or would have to wait."""
    with contextlib.suppress(OSError, AttributeError):  # A closed stream is None.
        descriptor = stream.fileno()
        # A pipe that nobody reads fills up. (On Windows, select takes sockets only.)
        if sys.platform == "win32" or select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, f"{text}\n".encode())


if __name__ == "__main__":
    main()
