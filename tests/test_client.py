"""client.py on a pipe, at a terminal, and with servers that misbehave."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from outside import LINUX
from support import (
    CALCULATORS,
    POSIX,
    ROOT,
    WAIT,
    Server,
    Terminal,
    load,
    posix,
    read_all,
    run,
    until,
    waiting_bytes,
)

CLIENT = ROOT / "client.py"
CHUNK = load("client").CHUNK
HOST_QUESTION = f"Host [{load('client').DEFAULT_HOST}]: "
PORT_QUESTION = f"Port [{load('client').DEFAULT_PORT}]: "
HERE = "127.0.0.1"
MIB = 1 << 20
RESET = b"\1\0\0\0\0\0\0\0"  # as SO_LINGER: close with a reset
REFUSAL = load("client").SERVER_FULL


@contextlib.contextmanager
def start(*arguments, **options):
    """Start a client on pipes; kill it at the end, or when it takes too long."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, str(CLIENT), *map(str, arguments)], bufsize=0, **{**pipes, **options}
    )
    watchdog = threading.Timer(WAIT, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def bad_server():
    """Give a listening socket: a server that does what the test does."""
    with socket.create_server((HERE, 0)) as listener:
        listener.settimeout(WAIT)
        yield listener


def accept(listener):
    """Return the next client of a bad server."""
    sock, _ = listener.accept()
    sock.settimeout(WAIT)
    return sock


def port_of(sock):
    """Return the port that a socket is bound to."""
    return sock.getsockname()[1]


@contextlib.contextmanager
def port_of_nobody():
    """Give a port that stays taken while nobody listens at it."""
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        yield port_of(sock)


def is_one_line(err, words=""):
    """Check that this is one line of the client's own with the words in it."""
    return bool(re.fullmatch(r"client: [^\r\n]+\r?\n", err)) and words in err


# --- On a pipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALCULATORS)
def test_pipe(name, running):
    """Lines go in, replies come out, and nothing else."""
    server = running(name)
    done = run("client", "localhost", server.port, input=b"1+2\n2**10\n")
    assert done == (0, b"3\n1024\n", "")


@pytest.mark.parametrize("data", [b"", b"1+2", b"1+2\r\n\n", b"\0\n\xff\n"])
def test_pipe_is_byte_for_byte(data, running):
    """What goes in is sent as it is, and what comes back comes out as it is."""
    server = running("server4")
    assert run("client", HERE, server.port, input=data) == (0, data, "")


def test_pipe_as_it_comes():
    """The client sends each line as soon as it reads it, and writes each reply at once."""
    with Server("server3") as server, start(HERE, server.port) as client:
        for number in range(20):
            client.stdin.write(b"%d+1\n" % number)
            assert client.stdout.readline() == b"%d\n" % (number + 1)
        client.stdin.write(b"6*7")
        client.stdin.close()
        assert client.stdout.read() == b"42\n"
        assert client.wait(WAIT) == 0
        assert client.stderr.read() == b""


def test_line_in_pieces():
    """A line that is read in pieces is one line, and needs one reply."""
    with bad_server() as listener, start(HERE, port_of(listener)) as client:
        with accept(listener) as sock:
            for piece in (b"1+", b"1", b"\n2", b"+2"):
                client.stdin.write(piece)
                assert sock.recv(100) == piece
            client.stdin.close()
            assert sock.recv(100) == b""
            sock.sendall(b"2\n4\n")
        assert client.stdout.read() == b"2\n4\n"
        assert client.wait(WAIT) == 0
        assert client.stderr.read() == b""


def test_input_ends_before_the_replies():
    """At the end of its input the client waits until the server has sent everything."""
    with bad_server() as listener, start(HERE, port_of(listener)) as client:
        with accept(listener) as sock:
            client.stdin.write(b"1+1\n")
            client.stdin.close()
            assert sock.recv(100) == b"1+1\n"
            assert sock.recv(100) == b""
            sock.sendall(b"2\n" * 1000)
            assert client.stdout.read(2) == b"2\n"
            assert client.poll() is None
        rest = b"".join(iter(lambda: client.stdout.read(65536), b""))
        assert rest == b"2\n" * 999
        assert client.wait(WAIT) == 0


def test_both_ways_at_once():
    """64 MiB through the echo, over pipes: neither direction waits for the other."""
    data = os.urandom(64 * MIB)
    with Server("server4") as server:
        status, out, err = run("client", HERE, server.port, input=data)
    assert (status, err) == (0, "")
    assert out == data


@posix
def test_stopped_and_continued():
    """A client that is stopped while it writes, as with Ctrl-Z, loses nothing."""
    data = os.urandom(3 * MIB)
    with Server("server4") as server, start(HERE, server.port) as client:
        sender = threading.Thread(target=lambda: (client.stdin.write(data), client.stdin.close()))
        sender.start()
        received = b""
        for _ in range(10):
            until(lambda: is_full(client.stdout), "the pipe is full")
            client.send_signal(signal.SIGSTOP)
            client.send_signal(signal.SIGCONT)
            received += client.stdout.read(50_000)
        while piece := client.stdout.read(MIB):
            received += piece
        sender.join(WAIT)
        assert received == data
        assert client.wait(WAIT) == 0


def is_full(pipe):
    """Return whether a pipe has been nearly full, and unchanged, for a moment."""
    before = waiting_bytes(pipe)
    time.sleep(0.02)
    return before > 20_000 and waiting_bytes(pipe) == before


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", " 127.0.0.1 \r"])
def test_no_arguments(host, running):
    """With no arguments the first two lines are host and port, and nothing of the rest is lost."""
    server = running("server3")
    lines = f"{host}\n{server.port}\n1+2\n2**10\n".encode()
    assert run("client", input=lines) == (0, b"3\n1024\n", "")


def test_port_is_asked_again():
    """A bad answer for the port gets one line, and the question again."""
    with Server("server3") as server:
        lines = f"{HERE}\nabc\n70000\n{server.port}\n1+2\n".encode()
        status, out, err = run("client", input=lines)
    assert (status, out) == (0, b"3\n")
    first, second = err.splitlines()
    assert "abc" in first
    assert "70000" in second


def test_end_after_a_bad_answer():
    """The end of input after a bad answer ends the client with status 2."""
    status, out, err = run("client", input=f"{HERE}\nabc\n".encode())
    assert (status, out) == (2, b"")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("lines", [None, b"a..b\n\n", b"a..b\n", b"a..b"])
def test_port_10000(lines):
    """HOST alone, a blank port, and none at all mean port 10000; HOST alone asks nothing."""
    arguments, options = (("a..b",), {}) if lines is None else ((), {"input": lines})
    status, out, err = run("client", *arguments, **options)
    assert (status, out) == (1, b"")
    assert is_one_line(err, "a..b:10000")


@pytest.mark.parametrize("arguments", [(HERE, "abc"), (HERE, "70000"), (HERE, "1", "2"), ("-x",)])
def test_bad_arguments(arguments):
    """Arguments that are wrong end the client with status 2 and no traceback."""
    status, out, err = run("client", *arguments)
    assert (status, out) == (2, b"")
    assert "Traceback" not in err


def test_refused():
    """The line for a refused connection names the place, and tells of server1."""
    with port_of_nobody() as port:
        status, out, err = run("client", HERE, port, input=b"1+1\n")
    assert (status, out) == (1, b"")
    assert is_one_line(err, f"{HERE}:{port}: ")
    assert "server1" in err


def test_refused_by_server1():
    """The same line comes from a server1 that has a client; that one notices nothing."""
    with Server("server1") as server, start(HERE, server.port) as first:
        first.stdin.write(b"1+1\n")
        assert first.stdout.readline() == b"2\n"
        status, out, err = run("client", HERE, server.port, input=b"1+1\n")
        assert (status, out) == (1, b"")
        assert is_one_line(err, "server1")
        first.stdin.write(b"2+2\n")
        assert first.stdout.readline() == b"4\n"


@pytest.mark.parametrize("host", ["a..b", "::1%no-such", "a" * 64, "no host", "nobody.invalid"])
def test_host_that_does_not_resolve(host):
    """A host that does not resolve gets one line, and status 1."""
    status, out, err = run("client", host, "1", input=b"1+1\n")
    assert (status, out) == (1, b"")
    assert is_one_line(err, f"client: cannot connect to {f'[{host}]' if ':' in host else host}:1: ")


def test_server_dies_in_the_middle():
    """If the server is killed, no reply is lost, and the client ends with one line and status 1."""
    with Server("server3") as server, start(HERE, server.port) as client:
        client.stdin.write(b"1+1\n")
        assert client.stdout.readline() == b"2\n"
        server.process.kill()
        assert client.wait(WAIT) == 1
        assert is_one_line(client.stderr.read().decode(), "connection lost")
        assert client.stdout.read() == b""


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("said", [b"", REFUSAL, b"half a li"])
def test_server_closes(said, reset):
    """If a server closes early, the client shows what it sent, and one line, with status 1."""
    with bad_server() as listener, start(HERE, port_of(listener)) as client:
        with accept(listener) as sock:
            sock.sendall(said)
            if said:
                assert client.stdout.read(len(said)) == said
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert client.wait(WAIT) == 1
        assert client.stdout.read() == b""
        refused = said == REFUSAL and not reset
        reasons = ["the server is full" if refused else "connection lost"]
        if said == REFUSAL and reset and not POSIX:  # Windows may show the reset as an end.
            reasons.append("the server is full")
        err = client.stderr.read().decode()
        assert any(is_one_line(err, reason) for reason in reasons)


@pytest.mark.parametrize(
    ("lines", "replies"),
    [
        (b"1+1\n2+2\n", b""),
        (b"1+1\n2+2\n", b"2\n"),
        (b"1+1\n2+2\n", b"2\n4"),
        (b"1+1\n2+2", b"2\n"),
        (b"1+1\n2+2", b"2"),
        (b"1+1", b""),
        (b"1+1\n20*3", b"2\n6"),
        (b"20*3", b"6"),
        (b"9**9\n1\n", b"3874204"),
        (b"echo\nthis", b"echo\nthi"),
        (b"", REFUSAL),
        (b"1+1\n", REFUSAL),
        (b"1234567890+1234567\n", REFUSAL),
        (b"1+1\n2+2\n", REFUSAL),
    ],
)
def test_server_ends_before_all_replies(lines, replies):
    """The client sends everything, but a server ends early: what it sent, one line, status 1.

    A last line that has no end needs a reply too, and half a reply is none. Neither is a refusal,
    even if it has as many bytes as the input.
    """
    with bad_server() as listener, start(HERE, port_of(listener)) as client:
        with accept(listener) as sock:
            client.stdin.write(lines)
            client.stdin.close()
            assert read_all(sock) == lines
            sock.sendall(replies)
        assert client.wait(WAIT) == 1
        assert client.stdout.read() == replies
        words = "client: the server is full" if replies == REFUSAL else "connection lost"
        assert is_one_line(client.stderr.read().decode(), words)


def test_no_thread():
    """If the system has no thread left, the client says so in one line, with status 1."""
    program = """if True:
        import runpy, threading
        def start(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = start
        runpy.run_path("client.py", run_name="__main__")
    """
    with Server("server3") as server:
        done = subprocess.run(
            [sys.executable, "-c", program, HERE, str(server.port)],
            cwd=ROOT,
            input=b"1+1\n",
            capture_output=True,
            timeout=WAIT,
        )
    assert (done.returncode, done.stdout) == (1, b"")
    assert is_one_line(done.stderr.decode(), "client: can't start new thread")


def test_refusal_in_pieces():
    """A refusal may come in pieces. A line of an echo that looks like one is none."""
    for lines, replies, status in [(b"1+1\n", REFUSAL, 1), (b"a\n" + REFUSAL, b"a\n" + REFUSAL, 0)]:
        with bad_server() as listener, start(HERE, port_of(listener)) as client:
            with accept(listener) as sock:
                client.stdin.write(lines)
                client.stdin.close()
                assert read_all(sock) == lines
                for piece in (replies[:2], replies[2:]):
                    sock.sendall(piece)
                    assert client.stdout.read(len(piece)) == piece
            assert client.wait(WAIT) == status


def test_echo_of_a_refusal():
    """What looks like a refusal is none if server4 sends it back."""
    with Server("server4") as server:
        done = run("client", HERE, str(server.port), input=REFUSAL)
        assert done == (0, REFUSAL, "")


@posix
@pytest.mark.parametrize("lines", ["yes 1+1", "printf '1+1\\n1+1\\n1+1\\n'"])
def test_head(lines):
    """When its reader closes the pipe, the client ends without a message or a traceback."""
    with Server("server3") as server:
        command = shlex.join([sys.executable, str(CLIENT), HERE, str(server.port)])
        done = subprocess.run(
            ["sh", "-c", f"{lines} | {command} | head -1"], capture_output=True, timeout=WAIT
        )
        assert done.stdout == b"2\n"
        assert done.stderr == b""


@posix
def test_interrupted_on_a_pipe():
    """Ctrl-C ends a client on a pipe as a signal does, without a traceback.

    Its server never answers.
    """
    with bad_server() as listener, start(HERE, port_of(listener)) as client:
        client.stdin.write(b"1+1\n")
        with accept(listener) as sock:
            assert sock.recv(100) == b"1+1\n"
            client.send_signal(signal.SIGINT)
            assert client.wait(WAIT) == -signal.SIGINT
            assert client.stderr.read() == b""
            assert client.stdout.read() == b""


@posix
def test_interrupted_at_a_question_on_a_pipe():
    """Ctrl-C ends a client that waits for its port on a pipe in the same way."""
    with start() as client:
        client.stdin.write(f"{HERE}\n".encode())
        until(lambda: not waiting_bytes(client.stdin), "the client has read the host")
        client.send_signal(signal.SIGINT)
        assert client.wait(WAIT) == -signal.SIGINT
        assert client.stderr.read() == b""


def test_gigabyte_on_a_pipe():
    """All that a server sends is written, and none of it is kept in memory."""
    size, piece = (1024 if LINUX else 64) * MIB, bytes(MIB)
    with bad_server() as listener, start(HERE, port_of(listener)) as client:
        client.stdin.close()
        with accept(listener) as sock:
            sender = threading.Thread(
                target=lambda: ([sock.sendall(piece) for _ in range(size // MIB)], sock.close())
            )
            sender.start()
            received = 0
            memory = 0
            while chunk := client.stdout.read(MIB):
                received += len(chunk)
                if received > size // 2 and not memory:
                    memory = peak_memory(client.pid)
            sender.join(WAIT)
        assert received == size
        assert client.wait(WAIT) == 0
        assert memory < 64 * MIB


def peak_memory(pid):
    """Return the most memory that a process has had, in bytes; 1 where that is not told."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024
    return 1


@posix
@pytest.mark.parametrize("closed", [0, 1])
def test_closed_streams(closed):
    """Without a standard input or output there is one line, and status 1."""
    prefix = ("sh", "-c", f'exec "$@" {closed}>&-', "sh")
    status, out, err = run("client", HERE, "1", prefix=prefix)
    assert (status, out) == (1, b"")
    assert is_one_line(err)


# --- At a terminal ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALCULATORS)
def test_terminal(name):
    """The questions, where it is connected, and then prompts and replies, each on its line."""
    with Server(name) as server, Terminal("client") as terminal:
        terminal.shows(HOST_QUESTION)
        terminal.type(f"{HERE}\r")
        terminal.shows(PORT_QUESTION)
        terminal.type(f"{server.port}\r")
        banner = terminal.shows("\r\n> ").lstrip("\r\n")
        first, *_ = [line for line in banner.splitlines() if str(server.port) in line][1:]
        assert f"{HERE}:{server.port}" in first
        assert all(way in first for way in ("Ctrl-D", "Ctrl-C", "bye"))
        for line, reply in (
            ("12*(3+4)-7/2", "80.5"),
            ("1/0", "error: division by zero"),
            ("2**10", "1024"),
            ("", "error: "),
        ):
            terminal.type(f"{line}\r")
            shown = terminal.shows("\r\n> ")
            assert shown.startswith(f"{line}\r\n{reply}")
            assert shown.count("\r\n") == 2
        terminal.type("\x04")
        assert terminal.ends()[0] == 0
        assert "Traceback" not in terminal.screen


def test_questions():
    """The defaults are shown in brackets: localhost, and port 10000."""
    with Terminal("client") as terminal:
        terminal.shows("Host [localhost]: ")
        terminal.type("a..b\r")
        terminal.shows("Port [10000]: ")
        terminal.type("\r")
        status, rest = terminal.ends()
        assert status == 1
        assert "client: cannot connect to a..b:10000: " in rest


@pytest.mark.parametrize("leave", ["\x04", "\x03", "bye\r", " bye \r"])
@pytest.mark.parametrize("after", [0, 1])
def test_leaving(leave, after):
    """Ctrl-D, Ctrl-C and bye leave with status 0, and bye is not sent."""
    with Server("server4") as server, Terminal("client", HERE, server.port) as terminal:
        terminal.shows("> ")
        for _ in range(after):
            terminal.type("hello\r")
            terminal.shows("hello\r\nhello\r\n> ")
        if leave == "\x03":
            status, rest = terminal.interrupt()
        else:
            terminal.type(leave)
            status, rest = terminal.ends()
        assert status == 0
        assert "Traceback" not in rest
        assert rest.count("bye") <= 1  # typed, but not echoed by the server
        until(lambda: server.log().endswith(" disconnected\n"), "a disconnect")


@pytest.mark.parametrize("host", [None, "localhost"])
def test_ctrl_c_at_a_question(host):
    """Ctrl-C leaves while host and port are asked for, too."""
    with Terminal("client") as terminal:
        terminal.shows(HOST_QUESTION)
        if host:
            terminal.type(f"{host}\r")
            terminal.shows(PORT_QUESTION)
        status, rest = terminal.interrupt()
        assert status == 0
        assert "Traceback" not in rest


@pytest.mark.parametrize("text", ["héllo ✓", "tab\\t", "  two  blanks  ", "日本語", "a" * 500])
def test_echo_at_a_terminal(text, running):
    """server4 gives back what is typed, in any script."""
    server = running("server4")
    with Terminal("client", HERE, server.port) as terminal:
        terminal.shows("> ")
        terminal.type(f"{text}\r")
        assert f"\r\n{text}\r\n" in "\r\n" + terminal.shows("\r\n> ").partition("\r\n")[2]
        terminal.type("bye\r")
        assert terminal.ends()[0] == 0


def test_two_lines_at_once():
    """Two lines that come as one input, as from a paste, are sent and answered one by one."""
    pytest.importorskip("readline")
    with Server("server3") as server, Terminal("client", HERE, server.port) as terminal:
        terminal.shows("> ")
        terminal.type("1+1\x16\n2+2\r")  # Ctrl-V makes the line feed a part of the line.
        terminal.shows("\r\n2\r\n4\r\n> ")
        terminal.type("100+1\r")
        terminal.shows("\r\n101\r\n> ")


def test_history_and_editing():
    """Where there is readline, the last line comes back with the arrow key, and can be edited."""
    pytest.importorskip("readline")
    with Server("server3") as server, Terminal("client", HERE, server.port) as terminal:
        terminal.shows("> ")
        terminal.type("40+2\r")
        terminal.shows("\r\n42\r\n> ")
        terminal.type("\x1b[A\x7f5\r")  # 40+5
        terminal.shows("\r\n45\r\n> ")


@pytest.mark.parametrize("replies", [b"", b"half a line"])
def test_server_dies_at_a_terminal(replies):
    """A lost server gets one line, and status 1. Half a reply is not shown."""
    with bad_server() as listener, Terminal("client", HERE, port_of(listener)) as terminal:
        with accept(listener) as sock:
            terminal.shows("> ")
            terminal.type("1+1\r")
            assert sock.recv(100) == b"1+1\n"
            sock.sendall(replies)
        status, rest = terminal.ends()
        assert status == 1
        assert is_one_line(rest.partition("\r\n")[2], "lost")


def test_refused_at_a_terminal():
    """A refused connection is one line and status 1 at a terminal too."""
    with port_of_nobody() as port, Terminal("client", HERE, port) as terminal:
        status, rest = terminal.ends()
        assert status == 1
        assert is_one_line(rest, "server1")


def test_server_that_closes_at_once():
    """The client notices that with the first line, and says so in one line."""
    with bad_server() as listener, Terminal("client", HERE, port_of(listener)) as terminal:
        accept(listener).close()
        terminal.shows("> ")
        terminal.type("1+1\r")
        status, rest = terminal.ends()
        assert status == 1
        assert is_one_line(rest.partition("\r\n")[2], "lost")


@pytest.mark.parametrize("sent", [b"", b"no newline"])
def test_server_that_never_answers(sent):
    """Ctrl-C leaves while the client waits for the end of a reply that never comes."""
    with bad_server() as listener, Terminal("client", HERE, port_of(listener)) as terminal:
        terminal.shows("> ")
        terminal.type("1+1\r")
        with accept(listener) as sock:
            assert sock.recv(100) == b"1+1\n"
            sock.sendall(sent)
            terminal.shows("\n")
            status, rest = terminal.interrupt()
            assert status == 0
            assert "Traceback" not in rest


def test_reply_without_end_at_a_terminal():
    """A reply without an end does not fill the memory. There is one line, and status 1."""
    with bad_server() as listener, Terminal("client", HERE, port_of(listener)) as terminal:
        terminal.shows("> ")
        with accept(listener) as sock:
            terminal.type("1+1\r")
            with contextlib.suppress(ConnectionError):  # It ends before it has read everything.
                sock.sendall(b"x" * (CHUNK + 5000))
            status, rest = terminal.ends()
            assert status == 1
            assert is_one_line(rest.partition("\r\n")[2], "lost")


HOSTILE = [
    b"\x1b]0;owned\x07",
    b"\x1b[2J\x1b[H",
    b"\x9b2J",
    b"\xc2\x9b2J",
    b"a\rb",
    b"\x08\x08\x7f",
    b"\0\x0e\x05",
    "\u202egnirts \u2066 \u2028\ufeff".encode(),
    b"\xff\xfe",
]


@pytest.mark.parametrize("said", HOSTILE)
def test_terminal_escapes(said):
    """Whatever a server sends, the terminal gets visible characters on one line."""
    with bad_server() as listener, Terminal("client", HERE, port_of(listener)) as terminal:
        terminal.shows("> ")
        with accept(listener) as sock:
            terminal.type("1\r")
            assert sock.recv(100) == b"1\n"
            sock.sendall(b"<" + said + b">\n")
            shown = terminal.shows("\r\n> ")
    _, reply, _ = shown.split("\r\n")
    assert reply.isprintable()
    assert re.fullmatch(r"<.*\\.*>", reply)


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (b"80.5", "80.5"),
        ("héllo ✓".encode(), "héllo ✓"),
        (b"a\tb", r"a\tb"),
        (b"\x1b[2J", r"\x1b[2J"),
        (b"\xff", r"\xff"),
        (b"\0", r"\x00"),
        ("\u202e".encode(), r"\u202e"),
        (b"back\\slash", "back\\slash"),
    ],
)
def test_visible(reply, shown):
    """Control characters are shown escaped, others as they are."""
    assert load("client").visible(reply) == shown
