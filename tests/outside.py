"""What can be seen of a server process from outside, and crowds of clients to load it with."""

import contextlib
import os
import pathlib
import selectors
import socket
import sys
import threading
import time

from support import POSIX, WAIT, scaled

if POSIX:
    import resource

LINUX = sys.platform == "linux"
PROCESSORS = sorted(os.sched_getaffinity(0)) if LINUX else [0]
RESET = b"\x01\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds: close() sends a reset


# --- A process, from outside --------------------------------------------------------------------


def status(pid, field):
    """Return a number of /proc/PID/status; sizes are in bytes."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            _, number, *unit = line.split()
            return int(number) * (1024 if unit else 1)
    raise AssertionError(f"no {field} in /proc/{pid}/status")


def memory(pid):
    """Return the process's resident memory in bytes; from here on, peak() counts anew."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
    return status(pid, "VmRSS")


def peak(pid):
    """Return the most resident memory that the process has had since memory() was called."""
    return status(pid, "VmHWM")


def descriptors(pid):
    """Return the number of the process's open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    """Return the number of the process's threads."""
    return len(os.listdir(f"/proc/{pid}/task"))


def processor_time(pid):
    """Return the seconds of processor time that the process's threads have used: proc(5)."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def idle_share(pid, seconds=0.1):
    """Return the share of a processor that the process uses for some seconds from now."""
    before, begun = processor_time(pid), time.monotonic()
    time.sleep(seconds)  # what is measured is this span
    return (processor_time(pid) - before) / (time.monotonic() - begun)


def listening_port(pid):
    """Return the port at which a process listens on 127.0.0.1, or None."""
    inodes = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link))
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].partition(":")[2], 16)
    return None


def raise_descriptor_limit():
    """Let this process have as many descriptors as the tests need; return the limits there were."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 10_000  # macOS does not take its own hard limit, which is infinite.
    if limits[1] != resource.RLIM_INFINITY:
        enough = min(enough, limits[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(enough, limits[0]), limits[1]))
    return limits


def percentile(samples, share):
    """Return the smallest sample that is at least as large as that share of them."""
    return sorted(samples)[max(0, -(-len(samples) * share // 100) - 1)]


# --- Clients ------------------------------------------------------------------------------------


@contextlib.contextmanager
def crowd(server, count, exactly=False, **options):
    """Give a list of so many connected clients, and close all of them in the end.

    If the server takes fewer than 1,000, the crowd is as much smaller, unless it is to be exact.
    """
    clients = []
    try:
        for _ in range(count if exactly else scaled(server.name, count)):
            clients.append(server.connect(**options))
        yield clients
    finally:
        for client in clients:
            client.close()


def question(server, number):
    """Return a line that asks for a number, and the reply that the server must give."""
    if server.name == "server4":
        return b"%d\n" % number, b"%d\n" % number
    return b"%d + 1\n" % (number - 1), b"%d\n" % number


def receive(sock, length):
    """Return so many bytes from a socket; fewer if its end comes first."""
    data = b""
    while len(data) < length and (more := sock.recv(length - len(data))):
        data += more
    return data


def all_answered(server, clients):
    """Ask every client's own question, then read the answers; raises AssertionError."""
    for number, client in enumerate(clients, 10_000):
        client.sendall(question(server, number)[0])
    for number, client in enumerate(clients, 10_000):
        answer = question(server, number)[1]
        assert receive(client, len(answer)) == answer


def round_trips(server, client, count):
    """Return the seconds that each of so many questions of a client took."""
    asked, answer = question(server, 2)
    samples = []
    for _ in range(count):
        begun = time.perf_counter()
        client.sendall(asked)
        assert receive(client, len(answer)) == answer
        samples.append(time.perf_counter() - begun)
    return samples


def admitted(server):
    """Return a client that the server has answered, or None if it is full."""
    asked, answer = question(server, 2)
    with contextlib.ExitStack() as stack, contextlib.suppress(ConnectionError):
        client = stack.enter_context(server.connect())
        client.sendall(asked)
        if receive(client, len(answer)) == answer:
            stack.pop_all()
            return client
    return None


def reset(client):
    """Close a socket with a reset, as a crashed client's kernel does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def push(sock, data):
    """Send to a non-blocking socket what it takes at the moment; return the number of bytes."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


class Busy:
    """A thread in which clients ask again as soon as they are answered; a context manager.

    `request` is sent; when `reply` has come back, byte for byte, it is sent again. With `reply`
    None, `request` is sent whenever the socket takes bytes, and what comes back is dropped.
    """

    def __init__(self, clients, request, reply=None):
        self.clients, self.request, self.reply = clients, request, reply
        self.served = dict.fromkeys(clients, 0)  # replies, or bytes of replies
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
        try:
            with selectors.DefaultSelector() as selector:
                for client in self.clients:
                    client.setblocking(False)
                    if self.reply is None:
                        selector.register(client, 3, [self.request])
                    else:
                        selector.register(client, 1, [b""])
                        client.send(self.request)
                while not self.leave:
                    for key, events in selector.select(0.05):
                        self.turn(key.fileobj, key.data, events)
        except (OSError, AssertionError) as error:
            self.error = error

    def turn(self, client, rest, events):
        """Read what the client has received, and send its next request."""
        if events & selectors.EVENT_READ:
            data = client.recv(65536)
            assert data, "the server closed the connection"
            if self.reply is None:
                self.served[client] += len(data)
            else:
                rest[0] += data
                assert self.reply.startswith(rest[0]), rest[0]
                if rest[0] == self.reply:
                    rest[0] = b""
                    self.served[client] += 1
                    client.send(self.request)
        if events & selectors.EVENT_WRITE:
            rest[0] = rest[0][push(client, rest[0]) :] or self.request
