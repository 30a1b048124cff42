"""Service: server1's refusal, crowds, the echo, and the edges of the protocol."""

import contextlib
import hashlib
import os
import random
import re
import signal
import socket
import threading
import time

import pytest
from support import (
    CALCULATORS,
    CROWDED,
    POSIX,
    SERVERS,
    WAIT,
    Server,
    address_in_use,
    ask,
    load,
    posix,
    read_all,
    read_line,
    run,
    scaled,
    until,
)

TOO_LONG = b"error: line longer than 1024 bytes\n"
AT_ONCE = 2  # seconds: more than a busy machine needs, less than any retry or queue takes
MIB = 1 << 20
REFUSED = (ConnectionError,) if POSIX else (ConnectionError, AssertionError)  # a reset, or an end


def answered(sock, data):
    """Send all data, close the sending side, and return all that comes back, and the end."""
    sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    received = read_all(sock)
    sender.join(WAIT)
    return received


# --- server1: one client at a time --------------------------------------------------------------


def test_second_client_is_refused():
    """While server1 has a client, connecting fails at once; when it has left, it works again."""
    with Server("server1") as server:
        with server.connect() as first:
            assert ask(first, "1+1") == "2"
            for _ in range(20):
                begun = time.monotonic()
                with pytest.raises(ConnectionRefusedError):
                    server.connect()
                assert time.monotonic() - begun < AT_ONCE
            assert ask(first, "2+2") == "4"
        with server.connect_to_idle() as second:
            assert ask(second, "3+3") == "6"


@posix
def test_clients_of_the_same_instant():
    """Of those connected before server1 stopped listening, one is served, the others are reset."""
    with Server("server1") as server:
        server.process.send_signal(signal.SIGSTOP)
        first, *others = clients = [server.connect(timeout=AT_ONCE) for _ in range(12)]
        for number, sock in enumerate(clients[:8]):
            sock.sendall(b"%d+0\n" % number)  # Some have sent something already, some have not.
        server.process.send_signal(signal.SIGCONT)
        assert read_line(first) == "0"
        for sock in others:
            with sock, pytest.raises(ConnectionError):
                sock.sendall(b"1+1\n")
                assert sock.recv(1) != b"", "an end is no error"
                pytest.fail("a second client was served")
        with first:
            assert ask(first, "5+5") == "10"
        with server.connect_to_idle() as after:
            assert ask(after, "1+1") == "2"


def test_next_client_need_not_wait():
    """A client that connects after the last one has seen its connection close is served."""
    with Server("server1") as server:
        for number in range(1000):
            with server.connect() as sock:
                sock.sendall(b"%d+1" % number)
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b"%d\n" % (number + 1)
        assert "waiting" not in server.log()
        assert server.log().count("disconnected") == 1000


def test_sessions_of_all_ends():
    """However a client leaves server1, the next is served."""
    with Server("server1") as server:
        for number in range(60):
            with server.connect_to_idle() as sock:
                if number % 3:
                    with contextlib.suppress(ConnectionError):  # It may have connected too early.
                        sock.sendall(b"2**10\n" * (number % 5))
                if number % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        def attempt():  # The queue may still hold clients that have left.
            with contextlib.suppress(*REFUSED), server.connect() as sock:
                return ask(sock, "1+1")

        assert until(attempt, "an answer") == "2"


def test_port_taken_for_a_moment():
    """If the port is free again within a second, server1 listens again and serves the next one."""
    with Server("server1") as server, server.connect() as sock:
        assert ask(sock, "1+1") == "2"
        with socket.create_server(("127.0.0.1", server.port)):
            sock.close()
            until(lambda: "waiting: " in server.log(), "it waits for its port")
        with server.connect_to_idle() as sock:
            assert ask(sock, "2+2") == "4"


def test_port_taken_in_the_meantime():
    """Another server may take the port while server1 serves. Then server1 says so and ends."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for name in SERVERS:
            server = stack.enter_context(Server("server1"))
            sock = stack.enter_context(server.connect())
            assert ask(sock, "1+1") == "2"
            pairs.append((server, stack.enter_context(Server(name, str(server.port)))))
            assert ask(sock, "2+2") == "4"
            sock.close()
        for server, other in pairs:
            assert server.process.wait(WAIT) == 1
            last = server.log().splitlines()[-1]
            reason = address_in_use()
            assert last == f"server1: cannot listen on 127.0.0.1:{server.port}: {reason}"
            with other.connect() as sock:
                assert ask(sock, "7") == "7"


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("sessions", [1, 3])
def test_killed_with_a_client(name, sessions):
    """After kill -9 in the middle of a session the port can be used again at once."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(name))
        for number in range(sessions):
            sock = stack.enter_context(server.connect_to_idle())
            assert ask(sock, "7") == "7"
            if number < sessions - 1:
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b""
        server.process.kill()
        server.process.wait(WAIT)
        with Server(name, str(server.port)) as next_one, next_one.connect() as sock:
            assert ask(sock, "8") == "8"


# --- The others: many at once -------------------------------------------------------------------


@pytest.mark.parametrize("name", CROWDED)
def test_a_hundred_chat_while_a_hundred_are_silent(name):
    """Every client gets its own answers, in order, whatever the others do."""
    rounds = 20
    with Server(name) as server, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(server.connect()) for _ in range(scaled(name, 200))]
        silent, chatting = crowd[::2], crowd[1::2]
        for sock in silent[::2]:
            sock.sendall(b"4")  # the start of a line
        for turn in range(rounds):
            for number, sock in enumerate(chatting):
                sock.sendall(b"%d\n%d\n" % (number * 1000 + turn, turn))
        for number, sock in enumerate(chatting):
            for turn in range(rounds):
                assert read_line(sock) == str(number * 1000 + turn)
                assert read_line(sock) == str(turn)
        for number, sock in enumerate(silent):
            expected = "42" if number % 2 == 0 else "2"
            assert ask(sock, "2") == expected
        for sock in crowd:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        until(lambda: server.log().count("disconnected") == len(crowd), "all have left")


@pytest.mark.parametrize("name", CROWDED)
def test_a_silent_client_holds_up_nobody(name):
    """A client in the middle of its line, and one that takes no replies, disturb no other."""
    with Server(name) as server, contextlib.ExitStack() as stack:
        half, deaf, other = (stack.enter_context(server.connect()) for _ in range(3))
        half.sendall(b"1+")
        deaf.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                deaf.send(b"2**3000\n" * 1000)
        for number in range(100):
            assert ask(other, str(number)) == str(number)
        assert ask(half, "1") == ("1+1" if name == "server4" else "2")


@pytest.mark.parametrize(
    ("name", "sent", "received"),
    [
        ("server3", b"9**900\n" * 100 + b"1+1", b"%d\n" % 9**900 * 100 + b"2\n"),
        ("server3", b" " * 700 + b"9**1000", b"%d\n" % 9**1000),
        ("server4", bytes(range(256)) * 200, bytes(range(256)) * 200),
    ],
)
def test_turns_with_full_buffers(name, sent, received):
    """A client that has sent everything stays connected while it is owed bytes.

    The kernel takes at most 100 of them at a time.
    """

    class Narrow(socket.socket):
        def send(self, data):
            return super().send(data[:100])

    near, far = socket.socketpair()
    with Narrow(fileno=near.detach()) as near, far:
        far.settimeout(WAIT)
        for sock, option in ((near, socket.SO_SNDBUF), (far, socket.SO_RCVBUF)):
            sock.setsockopt(socket.SOL_SOCKET, option, 2000)
        far.sendall(sent)
        far.shutdown(socket.SHUT_WR)
        near.setblocking(False)
        client = load(name).Client(near, ("127.0.0.1", 1))
        got = b""
        while client.turn():
            got += far.recv(700) if client.owed else b""
        assert got + read_all(far) == received


# --- server4: every byte comes back -------------------------------------------------------------


def test_echo_of_64_mib_through_the_client(tmp_path):
    """A large file sent through client.py comes back as it is."""
    data = os.urandom(64 * MIB)
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(data)
    with Server("server4") as server, open(sent, "rb") as source, open(back, "wb") as target:
        status, _, err = run("client", server.host, server.port, stdin=source, stdout=target)
    assert (status, err) == (0, "")
    back = back.read_bytes()
    assert len(back) == len(data)
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


def test_echo_of_single_bytes():
    """Bytes sent one at a time come back one at a time, whatever they are."""
    with Server("server4") as server, server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(256):
            byte = bytes([number])
            sock.sendall(byte)
            assert sock.recv(2) == byte
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


@pytest.mark.parametrize("data", [b"", b"\n", b"x", b"\0\xff\xc3", b"no end\r\n\r"])
def test_echo_of_the_rest(data, running):
    """What was sent last comes back before the end, also when it came with the end."""
    server = running("server4")
    with server.connect_to_idle() as sock:
        assert answered(sock, data) == data


def test_echo_of_all_that_is_owed_at_the_end():
    """A client that sends all it can, closes its sending side and only then reads, gets it all."""
    data = os.urandom(16 * MIB)
    with Server("server4") as server, server.connect() as sock:
        sock.settimeout(0.3)  # Nothing was taken for that time: all buffers are full.
        sent = 0
        with contextlib.suppress(TimeoutError, socket.timeout):
            while sent < len(data):
                sent += sock.send(data[sent : sent + 65536])
        assert sent
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(WAIT)
        assert read_all(sock) == data[:sent]


# --- The protocol's edges -----------------------------------------------------------------------

EDGES = [  # what is sent, and the reply: bytes, or None for any one error line
    (b"1+1\n", b"2\n"),
    (b"12*(3+4)-7/2\n", b"80.5\n"),
    (b"2*3\r\n", b"6\n"),
    (b"1/0\n", b"error: division by zero\n"),
    (b"\n", None),
    (b"\r\n", None),
    (b" \t\n", None),
    (b"\t7 \n", b"7\n"),
    (b"1\r+1\n", None),
    (b"4\0\n", None),
    (b"\0\n", None),
    (b"\xff\xfe\n", None),
    (b"1+1\xc3\n", None),
    (b"\xed\xa0\x80\n", None),
    ("héllo ✓\n".encode(), None),
    (b"\x1b[2J\n", None),
    (b"1" + b"+1" * 511 + b" \n", b"512\n"),
    (b"1" + b"+1" * 511 + b" \r\n", b"512\n"),
    (b"1" + b"+1" * 512 + b"\n", TOO_LONG),
    (b"1" + b"+1" * 512 + b"\r\n", TOO_LONG),
    (b"1" * 5000 + b"\n", TOO_LONG),
    (b"9**1040\n", b"%d\n" % 9**1040),
    (b"9**9**9\n", None),
    (b"2.5\n", b"2.5\n"),
]
STREAM = b"".join(line for line, _ in EDGES)


def check_edges(received):
    """Check that there is one reply line for every line of EDGES, in order, and no more."""
    replies = received.splitlines(keepends=True)
    assert received.count(b"\n") == len(replies) == len(EDGES)
    for (line, expected), got in zip(EDGES, replies):
        if expected is None:
            assert re.fullmatch(rb"error: [^\n]+\n", got), line
            assert got[:-1].decode().isprintable(), line
        else:
            assert got == expected, line


@pytest.mark.parametrize("name", CALCULATORS)
def test_lines_in_one_segment(name):
    """Lines sent together are answered each, in order."""
    with Server(name) as server, server.connect() as sock:
        check_edges(answered(sock, STREAM))
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("name", CALCULATORS)
def test_lines_in_many_segments(name, running):
    """Wherever the segments are cut, the replies are the same."""
    server = running(name)
    for size in (1, 7, 1023, 1024, 1025, 1026):
        with server.connect_to_idle() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = STREAM if size > 1 else STREAM.replace(b"1" * 5000, b"1" * 1100)
            for begin in range(0, len(stream), size):
                sock.sendall(stream[begin : begin + size])
            sock.shutdown(socket.SHUT_WR)
            check_edges(read_all(sock))


@pytest.mark.parametrize("name", CALCULATORS)
def test_lines_one_by_one(name, running):
    """Each line is answered before the next is sent."""
    server = running(name)
    with server.connect_to_idle() as sock:
        received = b""
        for line, _ in EDGES:
            cut = random.randrange(len(line))
            sock.sendall(line[:cut])
            sock.sendall(line[cut:])
            received += read_line(sock).encode() + b"\n"
        check_edges(received)


UNENDED = [
    (b"", b""),
    (b"1+1", b"2\n"),
    (b"1+1\r", b"2\n"),
    (b"1+1\n", b"2\n"),
    (b"1+1\n2+2", b"2\n4\n"),
    (b" " * 1023 + b"1", b"1\n"),
    (b" " * 1024 + b"1", TOO_LONG),
    (b" " * 1025 + b"1", TOO_LONG),
    (b"1" * 5000, TOO_LONG),
    (b"1" * 5000 + b"\n3", TOO_LONG + b"3\n"),
]


@pytest.mark.parametrize("name", CALCULATORS)
def test_no_end_at_half_close(name, running):
    """A last line without an end is answered when the client closes its sending side."""
    server = running(name)
    for sent, received in UNENDED:
        with server.connect_to_idle() as sock:
            assert answered(sock, sent) == received, sent[:9]


@pytest.mark.parametrize("name", CALCULATORS)
def test_line_of_10_mb(name, running):
    """A huge line gets one error; what came before and comes after is answered."""
    server = running(name)
    with server.connect_to_idle() as sock:
        data = b"1+1\n" + b"1" * 10_000_000 + b"\n" + b"2+2\r\n" + b"+1" * 5_000_000 + b"\n5"
        assert answered(sock, data) == b"2\n" + TOO_LONG + b"4\n" + TOO_LONG + b"5\n"


@pytest.mark.parametrize("name", CALCULATORS)
def test_a_long_line_is_refused_before_it_ends(name, running):
    """The error comes as soon as the line is too long, and only once."""
    server = running(name)
    with server.connect_to_idle() as sock:
        sock.sendall(b"1" * 1030)
        assert read_line(sock).encode() + b"\n" == TOO_LONG
        sock.sendall(b"1" * 3000 + b"\n")
        assert ask(sock, "6*7") == "42"


@pytest.mark.parametrize("name", CALCULATORS)
def test_many_lines_without_waiting(name, running):
    """A client may send all its lines before it reads a reply."""
    count = 30_000
    lines = b"".join(b"%d+%d\n" % (number, number) for number in range(count))
    server = running(name)
    with server.connect_to_idle() as sock:
        expected = b"".join(b"%d\n" % (2 * number) for number in range(count))
        assert answered(sock, lines) == expected


@pytest.mark.parametrize("name", CALCULATORS)
def test_long_replies_to_one_segment(name):
    """Lines that are sent together are all answered, even if the replies are long."""
    with Server(name) as server, server.connect() as sock:
        replies = sock.makefile("rb")
        for _ in range(3):
            sock.sendall(b"9**1000\n1\n" * 100)
            for _ in range(100):
                assert replies.readline() == b"%d\n" % 9**1000
                assert replies.readline() == b"1\n"
