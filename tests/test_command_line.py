"""The servers' command line: the question, the arguments, the streams, the log, and the end."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
import support
from support import SERVERS, Server, Terminal, ask, command, crowd, posix, run, until

QUESTION = "Port [10000]: "
every_server = pytest.mark.parametrize("name", SERVERS)
both_signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@contextlib.contextmanager
def piped(arguments, answer="0", **options):
    """Start a program whose standard streams are pipes that stay open; give its process."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(arguments, text=True, **pipes, **options) as process:
        watchdog = threading.Timer(support.WAIT, process.kill)  # It ends a read that waits in vain.
        watchdog.start()
        try:
            print(answer, file=process.stdin, flush=True)
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def port_in(line, before, address="127.0.0.1"):
    """Return the port in a listening line, which begins with `before`."""
    found = re.fullmatch(rf"{re.escape(before)} listening on ({address}):(\d+)\n", line)
    assert found, line
    return int(found[2])


def visit(port, host="127.0.0.1"):
    """Be a client that is answered and leaves; return the two lines that the log has to show."""
    with socket.create_connection((host, port), support.WAIT) as client:
        assert ask(client, "31337") == "31337"
        client.shutdown(socket.SHUT_WR)
        assert support.read_all(client) == b""
        return "{0}:{1} connected\n{0}:{1} disconnected\n".format(*client.getsockname())


@every_server
def test_at_a_terminal_everything_is_seen(name):
    """At a terminal the question, the listening line and the log are seen; Ctrl-C ends it."""
    with Terminal(name) as terminal:
        terminal.shows(QUESTION)
        terminal.type("0\r")
        terminal.shows(f"{name} listening on 127.0.0.1:")
        log = visit(int(terminal.shows("\n")))
        terminal.shows(log.replace("\n", "\r\n"))
        assert terminal.interrupt()[0] == -signal.SIGINT


@pytest.mark.parametrize("redirection", ["> /dev/null", "2> /dev/null"])
def test_the_question_is_seen_beside_a_redirection(redirection):
    """The question is shown at the terminal, whichever output goes elsewhere."""
    with Terminal("server1", prefix=("sh", "-c", f'exec "$@" {redirection}', "sh")) as terminal:
        terminal.shows(QUESTION)
        terminal.type("none\r")
        assert terminal.ends()[0] != 0


@every_server
def test_three_pipes(name, monkeypatch):
    """In an IDE's run window the question and the log are on standard error, and no word else."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # Each word is seen without it, too.
    with piped(command(name)) as process:
        assert process.stderr.read(len(QUESTION)) == QUESTION
        log = visit(port_in(process.stdout.readline(), name))
        assert process.stderr.readline() + process.stderr.readline() == log
        process.kill()
        assert process.stdout.read() == process.stderr.read() == ""


@pytest.mark.parametrize("answer", [b"", b"\n", b" \t \r\n"])
def test_no_answer_is_port_10000(answer):
    """A blank line, and the end of the input, mean port 10000."""
    # No host has this name. So the server names the port, and does not take it.
    status, out, err = run("server3", "-b", "a..b", input=answer)
    assert (status, out) == (1, b"")
    assert err.startswith(f"{QUESTION}server3: cannot listen on a..b:10000: ")


@pytest.mark.parametrize("text", ["abc", "-1", "65536", "9" * 5000, "\x1b[2J"])
def test_a_bad_port_gets_one_line(text):
    """What is no port, as an answer or as an argument, gets one line; there is no new question."""
    for arguments, question in (([], QUESTION), (["--", text], "")):
        status, out, err = run("server2", *arguments, input=f"{text}\n0\n".encode())
        assert status != 0
        assert out == b""
        assert re.fullmatch(re.escape(f"{question}server2: {text!a} is not a port") + ".*\n", err)


@every_server
def test_help(name):
    """-h shows the arguments, even with `python -OO`, which takes the docstrings away."""
    status, out, err = run(name, "-h", env={**os.environ, "PYTHONOPTIMIZE": "2"})
    assert (status, err) == (0, "")
    assert b"PORT" in out
    assert b"--bind" in out


@pytest.mark.parametrize(
    ("address", "shown"),
    [("::1", r"\[::1]"), ("0.0.0.0", "0.0.0.0"), ("localhost", r"127.0.0.1|\[::1]")],
)
def test_bind(address, shown):
    """-b takes addresses and host names, and shows IPv6 addresses in brackets."""
    if address == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    host = address.replace("0.0.0.0", "127.0.0.1")
    with piped(command("server1", "-b", address, "0")) as process:  # It listens several times.
        port = port_in(process.stdout.readline(), "server1", shown)
        log = visit(port, host) + visit(port, host)
        assert "".join(process.stderr.readline() for _ in range(4)) == log.replace("::1", "[::1]")


def has_ipv6():
    """Return whether this machine has the IPv6 loopback address."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True


def why_not(name, address, port, prefix=()):
    """Check that a server cannot listen there, and says so in one line; return the reason."""
    status, out, err = run(name, "-b", address, port, prefix=prefix)
    assert (status, out) == (1, b"")
    shown = re.escape(f"[{address}]" if ":" in address else address)
    found = re.fullmatch(rf"{name}: cannot listen on {shown}:{port}: (.+)\n", err)
    assert found, err
    return found[1]


@every_server
def test_a_port_in_use(name):
    """A port that is in use gets one line. The server that uses it goes on."""
    with Server(name) as server:
        reason = why_not(name, "127.0.0.1", server.port)
        assert reason == "Address already in use" or os.name == "nt"
        visit(server.port)


@pytest.mark.parametrize("address", ["a..b", "192.0.2.1", "::1%none"])
def test_an_unknown_address(address):
    """An address that this machine does not have, or no machine can have, gets one line."""
    assert why_not("server4", address, 0)


@support.linux
def test_a_port_that_needs_root():
    """A port that only root may use gets one line."""
    root = os.geteuid() == 0
    first = pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    if int(first) <= 1 or (root and not shutil.which("setpriv")):
        pytest.skip("here we may use all ports")
    prefix = ("setpriv", "--bounding-set=-net_bind_service") if root else ()
    assert why_not("server1", "127.0.0.1", 1, prefix) == "Permission denied"


# IDLE's streams are objects like these. Those of others have a fileno(), which fails. The windows
# of output and errors stand for each other's descriptor, so what goes there behind them is missed.
IDLE = """
import io, os, sys
script = __import__(sys.argv.pop())
class Window(object):
    def __init__(self, number): self.number = number
    def isatty(self): return True
    def readline(self): return "0\\n"
    def write(self, text): os.write(self.number, text.encode())
    def flush(self): pass
sys.stdin, sys.stdout, sys.stderr = Window(0), Window(2), Window(1)
script.main()
"""


@pytest.mark.parametrize(("name", "base"), [*zip(SERVERS, ["object", "io.TextIOBase"] * 2)])
def test_streams_without_a_descriptor(name, base):
    """In IDLE the question, the listening line and the log are seen, and the answer is heard."""
    program = [sys.executable, "-c", IDLE.replace("object", base), name]
    with piped(program, answer="not for the server", cwd=support.ROOT) as process:
        log = visit(port_in(process.stderr.readline(), QUESTION + name))
        assert process.stdout.readline() + process.stdout.readline() == log


@posix
@every_server
def test_closed_standard_error(name):
    """With `2>&-` clients are served; nothing but the listening line is on standard output."""
    with piped(command(name, prefix=("sh", "-c", 'exec "$@" 2>&-', "sh"))) as process:
        visit(port_in(process.stdout.readline(), name))
        process.kill()
        assert process.stdout.read() == ""


@posix
@every_server
@pytest.mark.parametrize("state", ["broken", "full"])
def test_a_log_that_nobody_reads(name, state):
    """Standard error may be a broken or a full pipe: clients are served all the same."""
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        os.set_blocking(writer, False)
        os.write(writer, bytes(2**20))  # It takes what it has room for.
        os.set_blocking(writer, True)
        if state == "broken":
            pipe.close()
        with Server(name, stderr=writer) as server:
            os.close(writer)
            for _ in range(3):
                visit(server.port)


@every_server
def test_the_log(name):
    """A client that leaves gets two lines, and one that is lost the reason; no byte from either."""
    with Server(name) as server:
        left = visit(server.port)
        client = server.connect()
        lost = "{}:{}".format(*client.getsockname())
        assert ask(client, "31337") == "31337"
        support.close_with_reset(client)
        until(lambda: server.log().count("\n") == 4, "four lines")
        log = f"{left}{lost} connected\n{lost} disconnected: Connection reset by peer\n"
        assert server.log() == log or os.name == "nt"


def test_lines_of_many_threads_do_not_mix():
    """Three hundred threads that write at once write whole lines."""
    with Server("server2") as server:
        with crowd(server, 300) as clients:
            assert all(support.answered(server, client) for client in clients)
        until(lambda: server.log().count("\n") >= 600, "all have left")
        lines = server.log().splitlines()
        assert [x for x in lines if not re.fullmatch(r"[0-9.]+:\d+ (dis)?connected", x)] == []


@posix
@every_server
@both_signals
def test_a_signal_ends_a_server_at_once(name, number):
    """It ends as a signal ends a program, with clients and without; its port is free at once."""
    with Server(name) as server, crowd(server, 1 if name == "server1" else 50) as clients:
        assert all(support.answered(server, client) for client in clients)
        clients[0].setblocking(False)
        clients[0].send(b"2**1000\n" * 100_000)  # It does not read the replies.
        status, seconds = server.stop(number)
        assert status == -number
        assert seconds < 5
        with Server(name, server.port) as successor:
            visit(server.port)
            assert successor.stop(number)[0] == -number
        assert "Traceback" not in server.log()


@both_signals
@every_server
def test_a_signal_ends_the_question(name, number):
    """A signal at the question ends a server as a signal ends a program."""
    with Terminal(name) as terminal:
        terminal.shows(QUESTION)
        terminal.process.send_signal(number)
        status, rest = terminal.ends()
        assert status == -number
        assert "Traceback" not in rest


@posix
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy never leaves it ignored")
@every_server
def test_an_ignored_interrupt_stays_ignored(name):
    """Where Ctrl-C is ignored (a background job of a script), a server ignores it too."""
    with Server(name, prefix=("sh", "-c", 'trap "" INT; exec "$@"', "sh")) as server:
        server.process.send_signal(signal.SIGINT)
        visit(server.port)
        assert server.stop(signal.SIGTERM)[0] == -signal.SIGTERM
