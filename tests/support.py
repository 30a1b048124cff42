"""What the tests share: the real scripts, started as a user starts them, and clients of theirs."""

import codecs
import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import pytest

try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows has no terminals that a test could make.
    POSIX = False
else:
    POSIX = True

ROOT = pathlib.Path(__file__).resolve().parent.parent
CALCULATORS = ("server1", "server2", "server3")
CROWDED = ("server2", "server3", "server4")  # those that serve many at once
SERVERS = (*CALCULATORS, "server4")
posix = pytest.mark.skipif(not POSIX, reason="needs what POSIX systems alone have")
WAIT = 30  # seconds until a test gives up; it never waits so long when all is well


def load(name):
    """Return one of the scripts as a module, to test its functions directly."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.lru_cache
def house(name):
    """Return how many clients a server takes on this system."""
    return getattr(load(name), "MAX_CLIENTS", 1000)  # server1: no crowd is scaled


def scaled(name, count):
    """Return the count, or as large a share of a server's clients if it takes fewer than 1,000."""
    return max(1, count * min(house(name), 1000) // 1000)


def until(condition, what="condition", seconds=WAIT):
    """Return the first true value of condition(); raises AssertionError when there is none."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def address_in_use():
    """Return the system's own words for a port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as sock:
        try:
            sock.bind(taken.getsockname())
        except OSError as error:
            return error.strerror
    raise AssertionError("a port that is in use could be bound")


def has_ipv6():
    """Return whether this machine has the IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


class Server:
    """A server script as a subprocess, on a free port; a context manager that ends it."""

    def __init__(self, name, *arguments, prefix=(), **options):
        self.name = name
        stderr, self.log_file = tempfile.mkstemp()
        options = {"stdin": subprocess.DEVNULL, "stderr": stderr, **options}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(ROOT / f"{name}.py"), *(arguments or ("0",))],
            stdout=subprocess.PIPE,
            **options,
        )
        os.close(stderr)
        self.banner = self.process.stdout.readline().decode()
        found = re.fullmatch(rf"{name} listening on (.+):(\d+)\n", self.banner)
        assert found, f"{self.banner!r} {self.log()}"
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.unlink(self.log_file)

    @property
    def pid(self):
        """The process's number."""
        return self.process.pid

    def log(self):
        """Return all that the server has written to standard error."""
        return pathlib.Path(self.log_file).read_bytes().decode().replace("\r\n", "\n")

    def connect(self, timeout=WAIT):
        """Return a connected socket that sends small messages at once."""
        client = socket.create_connection((self.host, self.port), timeout=timeout)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def connect_to_idle(self):
        """Return a client of server1, which may not have noticed yet that another one left."""

        def attempt():
            with contextlib.suppress(ConnectionError):
                return self.connect()

        return until(attempt, "server1 listens again")

    def stop(self, number=signal.SIGTERM):
        """Send the signal; return the exit status and the seconds that it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(WAIT), time.monotonic() - begun


def ask(sock, text):
    """Send text, a str or bytes, and an LF; return the reply line without its LF, as a str."""
    sock.sendall((text if isinstance(text, bytes) else text.encode()) + b"\n")
    return read_line(sock)


def read_line(sock):
    """Return the next line from a socket, without its LF, as a str; what follows stays unread."""
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(65536, socket.MSG_PEEK)
        assert data, f"the server closed the connection after {line!r}"
        line += sock.recv(data.find(b"\n") + 1 or len(data))
    return line[:-1].decode()


def read_all(sock):
    """Return all bytes from a socket up to its end."""
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def waiting_bytes(sock):
    """Return how many bytes of a socket or a pipe can be read at the moment."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]


def run(name, *arguments, prefix=(), **options):
    """Run a script to its end; return its status, and what it wrote to standard output and error.

    Its standard input is empty, if neither input nor stdin says what it is.
    """
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(
        [*prefix, sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        timeout=WAIT,
        **options,
    )
    return done.returncode, done.stdout, done.stderr.decode().replace("\r\n", "\n")


class Terminal:
    """A script at a terminal of its own, and what a person types and sees there."""

    def __init__(self, name, *arguments, prefix=()):
        if not POSIX:
            pytest.skip("needs a terminal that a test can make")
        self.screen = ""  # all that has been shown
        self.seen = 0  # how much of it the person has read
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so Ctrl-C is a signal
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text):
        """Type the text; a line ends in \\r, and Ctrl-C and Ctrl-D are \\x03 and \\x04."""
        os.write(self.master, text.encode())

    def look(self, seconds):
        """Read what is shown within so many seconds. Return whether more can follow."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the last program at this terminal has ended
            return False
        self.screen += self.decoder.decode(data)
        return bool(data)

    def shows(self, text):
        """Wait until the screen shows text after what was read; return all up to its end."""
        deadline = time.monotonic() + WAIT
        while (found := self.screen.find(text, self.seen)) < 0:
            alive = self.look(0.1)
            assert alive or text in self.screen[self.seen :], (
                f"no {text!r} in {self.screen[-1000:]!r}"
            )
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen[-1000:]!r}"
        begun, self.seen = self.seen, found + len(text)
        return self.screen[begun : self.seen]

    def ends(self):
        """Wait until the script has ended; return its status and all that was not yet read."""
        deadline = time.monotonic() + WAIT
        while self.look(0.1):
            assert time.monotonic() < deadline, f"it goes on: {self.screen[-1000:]!r}"
        return self.process.wait(WAIT), self.screen[self.seen :]

    def interrupt(self):
        """Press Ctrl-C until the script has ended; return what ends() does.

        Once is nearly always enough, but Python sleeps through a signal that comes in the
        instant before it begins to wait for a key, until the next key.
        """
        for _ in range(WAIT // 3):
            self.type("\x03")
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                if not self.look(0.1):
                    return self.ends()
        raise AssertionError(f"Ctrl-C does not end it: {self.screen[-1000:]!r}")
