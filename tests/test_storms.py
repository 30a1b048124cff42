"""Clients that connect and disconnect in every bad way. They leave nothing behind."""

import contextlib
import random
import re
import signal
import socket
import threading

import pytest
from outside import (
    LINUX,
    admitted,
    all_answered,
    crowd,
    descriptors,
    idle_share,
    memory,
    percentile,
    question,
    receive,
    reset,
    round_trips,
    threads,
)
from support import CALCULATORS, CROWDED, SERVERS, Server, read_all, scaled, until

MIB = 2**20
STORM = 10_000
LOG_LINE = re.compile(
    r"127\.0\.0\.1:\d+ (connected|disconnected(: [A-Z][a-z ]+)?|refused: server full)|waiting: .+"
)
AWKWARD = [  # what a client sends, not always to its end, before it leaves
    b"",
    b"1 +",
    b"1 + 1\n",
    b"1 + 1\n2 *",
    b"9**999\n" * 20,
    b"x" * 3000,
    b"\xff\x00\r\n\n\n",
]

linux = pytest.mark.skipif(not LINUX, reason="reads /proc")


@linux
@pytest.mark.parametrize(
    ("name", "count"),
    [("server1", 1000), ("server2", STORM), ("server3", STORM), ("server4", 1000)],
)
def test_a_storm_leaves_nothing_behind(name, count, one_processor):
    """10,000 connect and reset at any moment: descriptors, threads and memory are as before.

    There are fewer where the same lines are at work: server4 has the loop of server3.
    """
    with Server(name, prefix=one_processor) as server:
        before = settled(server)
        storm(server, STORM // 20)  # allocators and caches warm up
        until(lambda: at_rest(server) == before, "those after it have left")
        size = memory(server.pid)
        storm(server, count)
        until(lambda: at_rest(server) == before, "all have left")
        grown = memory(server.pid) - size
        print(f"{name}: {count} clients later, memory has grown by {grown / MIB:.2f} MiB")
        assert grown < 4 * MIB
        one_more_is_served(server)
        strange = [line for line in server.log().splitlines() if not LOG_LINE.fullmatch(line)]
        assert not strange


def one_more_is_served(server):
    """Connect one more client, have it answered, and close it. Earlier clients are in by then."""
    until(lambda: admitted(server), "one more is served").close()


def settled(server):
    """Return what at_rest() does when the server has had a client, and two looks are the same."""
    one_more_is_served(server)
    looks = [None, None]

    def same():
        looks[:] = [looks[1], at_rest(server)]
        return looks[0] == looks[1] and looks[1]

    return until(same, "the server is at rest")


def at_rest(server):
    """Return how many descriptors and threads the server has; None while it has a client."""
    log = server.log()
    if log.count(" connected") != log.count(" disconnected"):
        return None
    return descriptors(server.pid), threads(server.pid)


def storm(server, count):
    """Connect so many clients, and reset them."""
    chance = random.Random(count)
    present = []
    for number in range(count):
        with contextlib.suppress(ConnectionError):  # server1 has another
            client = server.connect()
            present.append(client)
            client.send(chance.choice(AWKWARD))
        while len(present) > chance.randrange(
            scaled(server.name, 40) if server.name in CROWDED else 40
        ):
            reset(present.pop(chance.randrange(len(present))))
        if number % 200 == 0:
            while present:
                reset(present.pop())
            one_more_is_served(server)  # The kernel drops clients for which its queue has no room.
    for client in present:
        reset(client)
    one_more_is_served(server)


@linux
@pytest.mark.parametrize("name", SERVERS)
def test_all_reset_before_they_are_accepted(name):
    """500 clients connect to a stopped server, and reset. The next one is served."""
    with Server(name) as server:
        before = settled(server)
        for _ in range(2):
            until(lambda: at_rest(server) == before, "all have left")
            server.process.send_signal(signal.SIGSTOP)
            with crowd(server, 500) as clients:
                for client in clients[::2]:
                    client.sendall(b"1 + 1\n")
                for client in clients:
                    reset(client)
            server.process.send_signal(signal.SIGCONT)
            one_more_is_served(server)
        until(lambda: at_rest(server) == before, "all have left")
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("name", CROWDED)
def test_nobody_gets_what_is_anothers(name):
    """While clients connect, ask, and leave in the middle, each gets its own replies only."""
    chance = random.Random(7)
    with Server(name) as server, contextlib.ExitStack() as stack:
        present = {}
        for number in range(10_000, 14_000):
            asked, answer = question(server, number)
            if len(present) < scaled(name, 100) or (
                len(present) < scaled(name, 500) and chance.random() < 0.2
            ):
                client = stack.enter_context(server.connect())
                present[client] = b""
            client = chance.choice(list(present))
            what = chance.random()
            if what < 0.1:
                client.sendall(asked)
                chance.choice([reset, socket.socket.close])(client)
                del present[client]
            elif what < 0.6:
                client.sendall(asked)
                present[client] += answer
            else:
                assert receive(client, len(present[client])) == present[client]
                present[client] = b""
        for client, answer in present.items():
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == answer


@linux
@pytest.mark.parametrize("name", SERVERS)
def test_urgent_data(name):
    """Out-of-band bytes neither stop the server nor keep it busy; the others are not disturbed."""
    with Server(name) as server, server.connect() as client, contextlib.ExitStack() as stack:
        others = [] if name == "server1" else [stack.enter_context(server.connect())]
        all_answered(server, [client, *others])
        for _ in range(200):
            client.send(b"!", socket.MSG_OOB)
        all_answered(server, others)
        share = idle_share(server.pid)
        print(f"{name}: with an urgent byte unread, it uses {share:.1%} of a processor")
        assert share < 0.05
        client.sendall(b"\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).endswith(b"\n")


@pytest.mark.parametrize("name", CROWDED)
def test_clients_that_close_their_side_at_once(name):
    """300 clients send a line without its end and half-close. Each gets its reply."""
    with Server(name) as server, crowd(server, 300) as clients:
        asked, answer = question(server, 2)
        for client in clients:
            client.sendall(asked[:-1])
            client.shutdown(socket.SHUT_WR)
        for client in clients:
            assert read_all(client) == (answer[:-1] if name == "server4" else answer)
        until(lambda: server.log().count(" disconnected\n") == len(clients), "all have left")


@pytest.mark.parametrize("name", CALCULATORS)
def test_a_storm_of_bytes(name):
    """Half a megabyte of random bytes gets a printable reply for each of its lines."""
    chance = random.Random(5)
    lines = [
        bytes(chance.choices(range(256), k=chance.randrange(200)))
        + bytes(chance.choices(b"0123456789.e+-*/%() \t\r\n", k=chance.randrange(60)))
        for _ in range(4000)
    ]
    data = b"\n".join(lines) + b"\n"
    with Server(name) as server, server.connect() as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        replies = client.makefile("rb")
        for _ in range(data.count(b"\n")):
            line = replies.readline()
            assert line.endswith(b"\n")
            assert line[:-1].decode().isprintable()
        sender.join()
        all_answered(server, [client])
        assert server.log().count("\n") == 1


@pytest.mark.skipif(not LINUX, reason="elsewhere a refused client may be reset later")
def test_a_storm_at_the_door_of_server1():
    """While one client is served, 2,000 others are refused or reset. The one notices nothing."""
    with Server("server1") as server, server.connect() as client:
        all_answered(server, [client])
        samples = []
        for _ in range(2000):
            with pytest.raises(ConnectionError):
                server.connect()
            samples += round_trips(server, client, 1)
        print(f"server1: {1000 * percentile(samples, 99):.1f} ms at the 99th percentile")
        assert percentile(samples, 99) < 0.1
