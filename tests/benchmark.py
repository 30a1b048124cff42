#!/usr/bin/env python3
"""Measure the four servers, and what one would write instead, side by side.

usage: python3 tests/benchmark.py [--seconds S] [--free-threaded PYTHON]

Each client sends a line, waits for its reply, and sends the next one. The table has the replies per
second with 1 to 900 such clients; the 99th percentile of the round trip with 100; the replies per
second that one client gets while 900 others are connected and silent; the seconds until each of 900
that connect at once, and talk without pause, has had a reply; and the memory that a client costs.
The server runs on one processor, and the load on another one.

With --free-threaded, a Python without the global lock runs server2 beside this one, with 8 clients
that send long lines, on all processors.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import math
import os
import pathlib
import platform
import random
import re
import resource
import select
import socket
import socketserver
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLIENTS = (1, 10, 100, 900)
ADMISSION = 20  # seconds for all clients to get their first reply
SUM, ANSWER = b"12*(3+4)-7/2\n", b"80.5\n"
TEXT = b"x" * 63 + b"\n"
LONG, LONG_ANSWER = b"+".join([SUM[:-1]] * 70) + b"\n", b"5635.0\n"


# --- The peers ----------------------------------------------------------------------------------


def answer(line):
    """Return the reply to a line, computed by the built-in eval, without any care."""
    try:
        return b"%a\n" % eval(line, {"__builtins__": {}})
    except Exception as error:
        return b"error: %a\n" % error


class EchoProtocol(asyncio.Protocol):
    """An echo on asyncio or uvloop."""

    def connection_made(self, transport):
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data):
        """Send the bytes back."""
        self.transport.write(data)


class SumProtocol(EchoProtocol):
    """A calculator on asyncio or uvloop."""

    start = b""

    def data_received(self, data):
        """Answer the lines that are complete."""
        *lines, self.start = (self.start + data).split(b"\n")
        self.transport.write(b"".join(map(answer, lines)))


class EchoHandler(socketserver.BaseRequestHandler):
    """An echo in a thread."""

    def handle(self):
        """Send the bytes back."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := self.request.recv(65536):
            self.request.sendall(data)


class SumHandler(socketserver.StreamRequestHandler):
    """A calculator in a thread."""

    disable_nagle_algorithm = True

    def handle(self):
        """Answer each line."""
        for line in self.rfile:
            self.wfile.write(answer(line))


class Threads(socketserver.ThreadingTCPServer):
    """A thread for every client, by the standard library."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        """Ignore errors: clients disconnect at any moment."""


async def run_protocol(protocol):
    """Serve on a free port, and print it."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
    print("listening on port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def run_peer(kind):
    """Run the peer of that name, for ever."""
    service, engine = kind.split("-")
    if engine == "threads":
        server = Threads(("127.0.0.1", 0), EchoHandler if service == "echo" else SumHandler)
        print("listening on port", server.server_address[1], flush=True)
        server.serve_forever()
    protocol = EchoProtocol if service == "echo" else SumProtocol
    if engine == "uvloop":
        import uvloop

        uvloop.run(run_protocol(protocol))
    asyncio.run(run_protocol(protocol))


# --- The load -----------------------------------------------------------------------------------


def processor_seconds(pid):
    """Return the processor time that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Return the resident memory of a process in KiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


def load(port, pid, count, message, expected, seconds, idle=False):
    """Load a server; return what was measured, by name.

    Every client asks once. Then all go on, or if the others are idle, one does. Raises RuntimeError
    when a reply is wrong, or not all clients had a reply in time.
    """
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        clients = {}
        now = time.perf_counter
        memory_before, begun = memory(pid), now()
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.send(message)
            clients[sock.fileno()] = (sock.recv, sock.send)
            poll.register(sock.fileno(), select.EPOLLIN)
        last = sock.fileno()
        sent = dict.fromkeys(clients, now())
        unserved = set(clients)
        trips = []
        deadline = begun + ADMISSION
        while now() < deadline:
            for descriptor, _ in poll.poll(0.2):
                receive, send = clients[descriptor]
                if receive(4096) != expected:
                    raise RuntimeError("a wrong reply")
                time_now = now()
                trips.append(time_now - sent[descriptor])
                sent[descriptor] = time_now
                if unserved is not clients:
                    unserved.discard(descriptor)
                if not idle or descriptor == last:
                    send(message)
                if unserved is not clients and not unserved:  # all are served: the clock starts
                    unserved = clients
                    trips.clear()
                    admitted = now() - begun
                    grown = (memory(pid) - memory_before) / count
                    begun, used = now(), processor_seconds(pid)
                    deadline = begun + seconds
        if unserved is not clients:
            raise RuntimeError(f"{len(unserved)} not served")
        spent = now() - begun
        return {
            "rate": len(trips) / spent,
            "p99": statistics.quantiles(trips, n=100)[98],
            "busy": (processor_seconds(pid) - used) / spent,
            "admitted": admitted,
            "memory": grown,
        }


def pinned(processor, command):
    """Return the command, bound to a processor where the system has taskset and several."""
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"):
        return command
    return ["taskset", "-c", str(processor), *command]


def measure(command, *arguments, **options):
    """Start a server, load it, stop it; return what load returns."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        port = int(re.findall(rb"\d+", server.stdout.readline())[-1])
        return load(port, server.pid, *arguments, **options)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


# --- The evaluator ------------------------------------------------------------------------------


def expression(rng, depth):
    """Return a random expression of small numbers."""
    if not depth or rng.random() < 0.2:
        return rng.choice((str(rng.randint(0, 9999)), f"{rng.uniform(0, 99):.2f}"))
    left, right = expression(rng, depth - 1), expression(rng, depth - 1)
    operator = rng.choice(("+", "-", "*", "/", "+", "-", "*", "/", "//", "%"))
    return rng.choice((f"{left}{operator}{right}", f"({left}{operator}{right})", f"-{left}"))


def expressions(count):
    """Return that many different expressions of 3 to 60 characters that have a value."""
    rng = random.Random(1)
    found = {}
    while len(found) < count:
        text = expression(rng, rng.randint(1, 4))
        with contextlib.suppress(ArithmeticError):
            if 3 <= len(text) <= 60 and math.isfinite(eval(text)):
                found[text] = None
    return list(found)


def race(texts, ours, theirs, rounds=5):
    """Return the geometric mean of theirs' time over ours', the best of some rounds for each."""
    ratios = []
    for text in texts:
        best = []
        for evaluate in (ours, theirs):
            times = []
            for _ in range(rounds):
                begun = time.perf_counter()
                for _ in range(20):
                    evaluate(text)
                times.append(time.perf_counter() - begun)
            best.append(min(times))
        ratios.append(best[1] / best[0])
    return statistics.geometric_mean(ratios)


# --- The table ----------------------------------------------------------------------------------


def machine():
    """Return a line that names the Python, the system and the processor."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(": ")[1]
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"{os.cpu_count()} x {model}"
    )


def columns(name, command, seconds):
    """Return the cells of a row of the table."""
    echo = name == "server4" or name.endswith("echo")
    message, expected = (TEXT, TEXT) if echo else (SUM, ANSWER)
    command = pinned(0, command)
    cells = dict.fromkeys([*CLIENTS, "p99", "idle", "admitted", "memory"], "")
    for count in CLIENTS[: 1 if name == "server1" else None]:
        print(f"{name}, {count} clients ...", end="\r", file=sys.stderr, flush=True)
        try:
            run = measure(command, count, message, expected, seconds)
        except (RuntimeError, OSError) as error:
            cells[count] = cells["admitted"] = error
            continue
        cells[count] = f"{run['rate']:,.0f}"
        if count > 1 and run["busy"] < 0.95:
            cells[count] += f" ({run['busy']:.0%})"
        if count == 100:
            cells["p99"] = f"{run['p99'] * 1e3:.1f} ms"
        if count == 900:
            cells["admitted"] = f"{run['admitted']:.1f} s"
    if name != "server1":
        run = measure(command, 901, message, expected, seconds, idle=True)
        cells["idle"] = f"{run['rate']:,.0f}"
        cells["memory"] = f"{run['memory']:.1f} KiB"
    return cells.values()


def race_threads(pythons, seconds, rounds=5):
    """Return the median of the replies per second of server2 with each Python."""
    rates = {python: [] for python in pythons}
    for _ in range(rounds):
        for python in pythons:
            command = [python, f"{ROOT}/server2.py", "0"]
            rates[python].append(measure(command, 8, LONG, LONG_ANSWER, seconds)["rate"])
    return {python: statistics.median(found) for python, found in rates.items()}


def main():
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--free-threaded", metavar="PYTHON", help="one without the global lock")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return run_peer(options.peer)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(machine(), flush=True)
    if options.free_threaded:
        rates = race_threads([sys.executable, options.free_threaded], options.seconds)
        print("\n| server2, 8 clients, long lines | replies/s |\n| --- | ---: |")
        for python, rate in rates.items():
            print(f"| {subprocess.getoutput(f'{python} -VV').partition('[')[0]} | {rate:,.0f} |")
        return
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    engines = ["threads", "asyncio"] + ["uvloop"] * bool(importlib.util.find_spec("uvloop"))
    peer = [sys.executable, __file__, "--peer"]
    runs = [(f"server{n}", [sys.executable, f"{ROOT}/server{n}.py", "0"]) for n in (1, 2, 3)]
    runs += [(f"{engine} + eval", [*peer, f"sum-{engine}"]) for engine in engines]
    runs += [("server4", [sys.executable, f"{ROOT}/server4.py", "0"])]
    runs += [(f"{engine} echo", [*peer, f"echo-{engine}"]) for engine in engines]
    print()
    print("| replies/s | 1 client | 10 | 100 | 900 | p99 | 1 of 901 | 900 at once | memory |")
    print("| --- | " + "---: | " * 8, flush=True)
    for name, command in runs:
        print(f"| {name} |", *(f"{cell} |" for cell in columns(name, command, options.seconds)))
    print("evaluate() and eval() ...", end="\r", file=sys.stderr, flush=True)
    spec = importlib.util.spec_from_file_location("server3", ROOT / "server3.py")
    server3 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server3)
    texts = expressions(1000)
    nothing = {"__builtins__": {}}
    ratio = race(texts, server3.evaluate, lambda text: eval(text, nothing))
    print()
    print(f"evaluate() is {ratio:.1f} times as fast as eval(), the geometric mean over 1,000")
    print("different expressions of 3 to 60 characters.")


if __name__ == "__main__":
    main()
