"""Stopping under load, logs that nobody reads, and clients that vanish."""

import contextlib
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import pytest
from outside import (
    LINUX,
    Busy,
    admitted,
    all_answered,
    crowd,
    listening_port,
    push,
    question,
)
from support import CROWDED, POSIX, ROOT, SERVERS, WAIT, Server, load, posix, read_all, until

if POSIX:
    import termios

# A line whose reply has as many digits as a reply can have.
LONG = b"10**%d\n" % (round(math.log10(load("server3").TOO_BIG)) - 1)
ATTEMPTS = 5  # because a busy machine may spoil some; the best one counts

linux = pytest.mark.skipif(not LINUX, reason="reads /proc")


# --- Stopping -----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", SERVERS)
def test_it_stops_within_a_second(name, number):
    """A signal ends a server with 900 clients (server1: one) that are busy, owed bytes or silent.

    It ends as a signal ends a program, and the port is free. The time is the best of some attempts.
    """
    took = []
    count = min(900, load(name).MAX_CLIENTS * 9 // 10) if name in CROWDED else 1
    while len(took) < ATTEMPTS and min(took, default=1) >= 1:
        with Server(name) as server, contextlib.ExitStack() as stack:
            clients = stack.enter_context(crowd(server, count))
            all_answered(server, clients)
            owed = clients[: max(1, count // 30)]
            senders = clients[len(owed) :][: count // 9]
            for client in owed:
                client.setblocking(False)
                push(client, LONG * 100_000)
            asked, answer = question(server, 2)
            busy = stack.enter_context(Busy(senders, asked * 20, answer * 20))
            until(lambda busy=busy: all(busy.served.values()), "the senders are at work")
            status, seconds = server.stop(number)
            took.append(seconds)
            assert status == -number
            assert "Traceback" not in server.log()
            with Server(name, str(server.port)) as next_server, next_server.connect() as client:
                all_answered(next_server, [client])
    seconds = ", ".join(f"{one:.3f}" for one in took)
    print(f"{name}, {count} clients, {number.name}: stopped after {seconds} s")
    assert min(took) < 1


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["server1", "server2"])
def test_it_stops_while_it_waits_for_a_client_that_does_not_read(name, number):
    """A signal ends the server while it cannot send."""
    with Server(name) as server, server.connect() as client:
        all_answered(server, [client])
        client.setblocking(False)
        quiet = 0
        while quiet < 20:
            quiet = 0 if push(client, LONG * 10_000) else quiet + 1
            time.sleep(0.005)  # from look to look
        status, seconds = server.stop(number)
        assert status == -number
        assert seconds < 1


WITHOUT_THREADS = """
import runpy, sys, threading
def start(thread):
    print("attempt", flush=True)
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
script = sys.argv.pop(1)
runpy.run_path(script, run_name="__main__")
"""

# The function of threading that asks the system for a thread has a new name since Python 3.13.
WITH_THREADS_LATER = """
import runpy, sys, threading
name = "_start_joinable_thread"
name = name if hasattr(threading, name) else "_start_new_thread"
start = getattr(threading, name)
attempts = iter(range(3))
def start_later(*arguments, **options):
    for _ in attempts:
        raise RuntimeError("can't start new thread")
    return start(*arguments, **options)
setattr(threading, name, start_later)
script = sys.argv.pop(1)
runpy.run_path(script, run_name="__main__")
"""


@contextlib.contextmanager
def server2_in(program):
    """Give a server2 that such a program runs, and the port at which it listens."""
    command = [sys.executable, "-c", program, str(ROOT / "server2.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process, int(process.stdout.readline().rpartition(b":")[2])
        finally:
            process.kill()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server2_stops_while_it_waits_for_a_thread(number):
    """While no thread can start, server2 tries again, says so once, and a signal ends it."""
    with (
        server2_in(WITHOUT_THREADS) as (process, port),
        socket.create_connection(("127.0.0.1", port), WAIT),
    ):
        for _ in range(3):
            assert process.stdout.readline() == b"attempt\n"
        process.send_signal(number)
        assert process.wait(1) == -number
        assert process.stderr.read() == b"waiting: can't start new thread\n"


def test_server2_serves_when_a_thread_can_start_again():
    """The client that server2 accepted before it had to wait for a thread is served after all."""
    with server2_in(WITH_THREADS_LATER) as (process, port):
        with socket.create_connection(("127.0.0.1", port), WAIT) as client:
            peer = b"%s:%d" % (client.getsockname()[0].encode(), client.getsockname()[1])
            client.sendall(b"1+1\n")
            assert client.recv(100) == b"2\n"
        assert process.stderr.readline() == b"waiting: can't start new thread\n"
        assert process.stderr.readline() == peer + b" connected\n"
        assert process.stderr.readline() == peer + b" disconnected\n"


# --- Logs that nobody reads ---------------------------------------------------------------------


def full_pipe():
    """Return both ends of a full pipe: a write to it would wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"x"):
            pass
    os.set_blocking(writer, True)
    return reader, writer


def full_socket():
    """Return both ends of a pair of sockets whose buffer is full."""
    one, other = socket.socketpair()
    other.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while other.send(bytes(4096)):
            pass
    other.setblocking(True)
    return one.detach(), other.detach()


def stopped_terminal():
    """Return both ends of a terminal at which somebody has pressed Ctrl-S."""
    master, slave = os.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    return master, slave


def unread_terminal():
    """Return both ends of a terminal that nobody reads, with room for a part of a line."""
    line = b"127.0.0.1:12345 disconnected\n"

    def written(most):
        master, slave = os.openpty()
        os.set_blocking(slave, False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while count != most and os.write(slave, line) == len(line):
                count += 1
        os.set_blocking(slave, True)
        return count, master, slave

    room, *full = written(None)
    for descriptor in full:
        os.close(descriptor)
    return written(room)[1:]


def broken_pipe():
    """Return the end of a pipe whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    return (writer,)


def full_disk():
    """Return a file on a device that has no room."""
    return (os.open("/dev/full", os.O_WRONLY),)


@contextlib.contextmanager
def deaf_server(name, make, both):
    """Give a server whose log, or log and banner, go to what make() returns: None is closed."""
    descriptors = make() if make else ()
    target = descriptors[-1] if make else None
    script = [sys.executable, str(ROOT / f"{name}.py"), "0"]
    if not make:
        script = ["sh", "-c", 'exec "$@" 2>&-' + " >&-" * both, "sh", *script]
    stdout = target if both and make else subprocess.DEVNULL
    process = subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=stdout, stderr=target)
    try:
        port = until(lambda: listening_port(process.pid), "the server listens")
        connect = lambda: socket.create_connection(("127.0.0.1", port), timeout=30)  # noqa: E731
        yield types.SimpleNamespace(name=name, pid=process.pid, process=process, connect=connect)
    finally:
        process.kill()
        process.wait()
        for descriptor in descriptors:
            os.close(descriptor)


@linux
@pytest.mark.parametrize(
    ("make", "both"),
    [
        (None, False),
        (None, True),
        (broken_pipe, True),
        (full_pipe, False),
        (full_pipe, True),
        (full_socket, True),
        (full_disk, True),
        (stopped_terminal, True),
        (unread_terminal, False),
    ],
)
@pytest.mark.parametrize("name", ["server2", "server3"])  # with threads, and without
def test_a_log_that_nobody_reads(name, make, both):
    """The server goes on serving many clients, and no client ever gets a byte of the log."""
    with deaf_server(name, make, both) as server:
        for _ in range(5):
            until(lambda: admitted(server), "a client is served").close()
        if name in CROWDED:
            with crowd(server, min(50, load(name).MAX_CLIENTS // 2)) as clients:
                all_answered(server, clients)
                for client in clients[::2]:
                    client.shutdown(socket.SHUT_WR)
                    assert read_all(client) == b""
                all_answered(server, clients[1::2])
        client = until(lambda: admitted(server), "a client is served")
        with client:
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == -signal.SIGTERM


# --- Vanished clients ---------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="needs keep-alive times")
@pytest.mark.parametrize("name", SERVERS)
def test_keep_alive_settings_of_a_connection(name):
    """A connection inherits from its listener: keep-alive, noticed within two minutes; no delay."""
    listener = load(name).listen(socket.AF_INET, ("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
            for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        assert idle + interval * count < 120
        if LINUX:
            unsent = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert 0 < unsent < 120_000


@pytest.mark.skipif(not shutil.which("ss"), reason="needs ss")
@pytest.mark.parametrize("name", SERVERS)
def test_keep_alive_timer_of_a_real_connection(name):
    """The kernel's timer of an accepted connection runs, and ends after the time that was set."""
    with Server(name) as server, server.connect() as client:
        all_answered(server, [client])
        client_port = client.getsockname()[1]
        command = ["ss", "-tnoH", f"sport = :{server.port} and dport = :{client_port}"]

        def timer():
            """Return what ss says about the connection, once no data is on its way."""
            return re.search(
                r"timer:\(keepalive,(\d+)sec",
                subprocess.run(command, check=True, capture_output=True, text=True).stdout,
            )

        idle = load(name).TIMEOUTS["TCP_KEEPIDLE"]
        assert 0 < int(until(timer, "a keep-alive timer")[1]) <= idle


SILENT, OWED = b"", LONG * 10_000


@pytest.mark.slow
@linux
def test_a_client_that_vanished_frees_server1():
    """In a network of two hosts whose link goes down, server1 serves the next within two minutes.

    One client is silent, one is owed bytes, each of a server1 of its own.
    """
    names = [f"test{os.getpid()}{end}" for end in "ab"]
    with contextlib.ExitStack() as stack:
        for name in names:
            if not ip("netns", "add", name):
                pytest.skip("no right to make network namespaces")
            stack.callback(ip, "netns", "del", name)
        here, there = names
        veth = ("type", "veth", "peer", "name", "there", "netns", there)
        assert ip("link", "add", "here", "netns", here, *veth)
        for name, device, address in ((here, "here", "10.9.8.1"), (there, "there", "10.9.8.2")):
            assert ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            assert ip("-n", name, "link", "set", device, "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        inside = ("ip", "netns", "exec", here)
        servers = []
        for sent in (SILENT, OWED):
            server = stack.enter_context(Server("server1", "-b", "0.0.0.0", "0", prefix=inside))
            command = ("ip", "netns", "exec", there, sys.executable, "-c", VANISHING)
            client = subprocess.Popen(
                [*command, str(server.port), sent.decode()], stdout=subprocess.PIPE
            )
            stack.callback(client.stdout.close)
            stack.callback(client.wait)
            stack.callback(client.kill)
            assert client.stdout.readline() == b"sent\n"
            servers.append(server)
        assert ip("-n", there, "link", "set", "there", "down")
        begun = time.monotonic()
        for server in servers:
            until(lambda server=server: " disconnected: " in server.log(), "it is noticed", 120)
            print(f"server1 was free after {time.monotonic() - begun:.0f} s: {server.log()}")
            ask = f"import socket; s = socket.create_connection(('127.0.0.1', {server.port}));"
            ask += "s.sendall(b'1+1\\n'); assert s.recv(9) == b'2\\n'"
            subprocess.run([*inside, sys.executable, "-c", ask], check=True)


VANISHING = """
import socket, sys, time
client = socket.create_connection(("10.9.8.1", int(sys.argv[1])))
client.sendall(b"1+1\\n")
assert client.recv(9) == b"2\\n"
client.setblocking(False)
try:
    client.sendall(sys.argv[2].encode())
except BlockingIOError:
    pass
print("sent", flush=True)
time.sleep(300)
"""


def ip(*arguments):
    """Run the ip command; return whether it succeeded."""
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
