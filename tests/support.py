"""What the tests share: the real scripts, started as a user starts them, and clients of theirs."""

import codecs
import contextlib
import importlib.util
import os
import pathlib
import re
import select
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest

try:
    import fcntl
    import pty
    import resource
    import termios
except ImportError:  # Windows
    POSIX = False
else:
    POSIX = True

ROOT = pathlib.Path(__file__).resolve().parent.parent
CALCULATORS = ("server1", "server2", "server3")
CROWDED = ("server2", "server3", "server4")  # those that serve many at once
SERVERS = (*CALCULATORS, "server4")
SCRIPTS = (*SERVERS, "client")
LINUX = sys.platform == "linux"
WAIT = 30  # seconds until a test gives up; it never waits so long when all is well
RESET = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER: close() sends a reset
posix = pytest.mark.skipif(not POSIX, reason="needs what POSIX systems alone have")
linux = pytest.mark.skipif(not LINUX, reason="needs Linux's /proc")


def load(name):
    """Return one of the scripts as a module, to test its functions directly."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(condition, what="condition", seconds=WAIT):
    """Return the first true value of condition(); raises AssertionError when there is none."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.002)


# --- The scripts --------------------------------------------------------------------------------


def command(name, *arguments, prefix=()):
    """Return the command line that runs a script, or another program."""
    program = [sys.executable, str(ROOT / f"{name}.py")] if name in SCRIPTS else [name]
    return [*prefix, *program, *map(str, arguments)]


def run(name, *arguments, prefix=(), **options):
    """Run a script to its end; return its status, and what it wrote to standard output and error.

    Its standard input is empty, if neither input nor stdin says what it is.
    """
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": WAIT, **options}
    done = subprocess.run(command(name, *arguments, prefix=prefix), **options)
    return done.returncode, done.stdout, (done.stderr or b"").decode().replace("\r\n", "\n")


class Server:
    """A server script as a subprocess, on a free port; a context manager that ends it."""

    def __init__(self, name, *arguments, prefix=(), **options):
        self.name = name
        stderr, self.log_file = tempfile.mkstemp()
        options = {"stdin": subprocess.DEVNULL, "stderr": stderr, **options}
        self.process = subprocess.Popen(
            command(name, *(arguments or ("0",)), prefix=prefix), stdout=subprocess.PIPE, **options
        )
        os.close(stderr)
        self.pid = self.process.pid
        banner = self.process.stdout.readline().decode().rstrip("\r\n")
        found = re.fullmatch(rf"{name} listening on (.+):(\d+)", banner)
        assert found, f"{banner!r} {self.log()}"
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.unlink(self.log_file)

    def log(self):
        """Return all that the server has written to standard error."""
        return pathlib.Path(self.log_file).read_bytes().decode().replace("\r\n", "\n")

    def connect(self, timeout=WAIT):
        """Return a connected socket that sends small messages at once."""
        client = socket.create_connection((self.host, self.port), timeout=timeout)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def connect_when_free(self):
        """Return a client that server1 has accepted; it may not have noticed yet that one left."""

        def attempt():
            with contextlib.suppress(ConnectionError):
                client = self.connect()
                if answered(self, client):
                    return client
                client.close()

        return until(attempt, f"{self.name} has a place")

    def stop(self, number):
        """Send the signal; return the exit status and the seconds that it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(WAIT), time.monotonic() - begun


class Terminal:
    """A script, or another program, at a terminal, and what a person types and sees there."""

    def __init__(self, name, *arguments, prefix=()):
        if not POSIX:
            pytest.skip("needs a terminal that a test can make")
        self.screen = ""  # all that has been shown
        self.seen = 0  # how much of it the person has read
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(name, *arguments, prefix=prefix),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"},
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
            alive = self.look(0.1) or text in self.screen[self.seen :]
            assert alive and time.monotonic() < deadline, f"no {text!r} in {self.screen!r}"
        begun, self.seen = self.seen, found + len(text)
        return self.screen[begun : self.seen]

    def ends(self):
        """Wait until the script has ended; return its status and all that was not yet read."""
        deadline = time.monotonic() + WAIT
        while self.look(0.1):
            assert time.monotonic() < deadline, f"it goes on: {self.screen!r}"
        return self.process.wait(WAIT), self.screen[self.seen :]

    def interrupt(self):
        """Press Ctrl-C until the script has ended; return what ends() does.

        Once is nearly always enough, but Python sleeps through a signal that comes in the
        instant before it begins to wait for a key, until the next key.
        """

        def pressed():
            self.type("\x03")
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                if not self.look(0.1):
                    return True
            return False

        until(pressed, "Ctrl-C ends it")
        return self.ends()


# --- Clients ------------------------------------------------------------------------------------


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


def question(server, number):
    """Return a line that asks for a number, and the reply line that the server must give."""
    if server.name == "server4":
        return b"%d\n" % number, b"%d\n" % number
    return b"%d + 1\n" % (number - 1), b"%d\n" % number


def answered(server, client, number=2):
    """Return whether a client's question gets its answer; False if the server has closed."""
    asked, answer = question(server, number)
    got = b""
    with contextlib.suppress(ConnectionError):
        client.sendall(asked)
        while len(got) < len(answer) and (more := client.recv(len(answer) - len(got))):
            got += more
    return got == answer


def close_with_reset(client):
    """Close a socket with a reset, as a crashed client's kernel does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


@contextlib.contextmanager
def crowd(server, count, **options):
    """Give a list of so many connected clients, and close all of them in the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect(**options)) for _ in range(count)]


class Busy:
    """A thread in which clients ask again as soon as they are answered; a context manager.

    `request` is sent; when `reply` has come back, byte for byte, it is sent again.
    """

    def __init__(self, clients, request, reply):
        self.clients, self.request, self.reply = clients, request, reply
        self.served = dict.fromkeys(clients, 0)  # replies
        self.error = None
        self.leave = False
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.leave = True
        self.thread.join(WAIT)

    def run(self):
        """Serve the sockets until told to leave; note the first error, and stop then."""
        rest = dict.fromkeys(self.clients, b"")
        try:
            with selectors.DefaultSelector() as selector:
                for client in self.clients:
                    client.setblocking(False)
                    selector.register(client, selectors.EVENT_READ)
                    client.send(self.request)
                while not self.leave:
                    for key, _ in selector.select(0.05):
                        client = key.fileobj
                        data = client.recv(65536)
                        assert data, "the server closed the connection"
                        rest[client] += data
                        assert self.reply.startswith(rest[client]), rest[client]
                        if rest[client] == self.reply:
                            rest[client] = b""
                            self.served[client] += 1
                            client.send(self.request)
        except (OSError, AssertionError) as error:
            self.error = error


# --- A process, from outside (Linux) ------------------------------------------------------------


def status(pid, field):
    """Return a number of /proc/PID/status; sizes are in bytes."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            _, number, *unit = line.split()
            return int(number) * (1024 if unit else 1)
    raise AssertionError(f"no {field} in /proc/{pid}/status")


def descriptors(pid):
    """Return the number of the process's open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def processor_seconds(pid):
    """Return the seconds of processor time that the process's threads have used: proc(5)."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def set_limit(pid, name, number):
    """Set a process's soft limit, such as NOFILE (descriptors): getrlimit(2)."""
    limit = getattr(resource, f"RLIMIT_{name}")
    resource.prlimit(pid, limit, (number, resource.prlimit(pid, limit)[1]))
