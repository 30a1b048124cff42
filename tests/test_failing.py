"""System calls that fail, each with every error that it may have: see failing.py."""

import contextlib
import re
import sys

import pytest
from failing import DONE
from outside import admitted
from support import ROOT, Server, posix, until

BLOCKING = ("accept", "recv", "sendall", "close", "write")
SELECTING = ("select", "accept", "setblocking", "recv", "send", "close", "write")
CALLS = {
    "server1": (*BLOCKING, "bind"),
    "server2": BLOCKING,
    "server3": SELECTING,  # server4 has the same loop
}
LOG_LINE = re.compile(r"127\.0\.0\.1:\d+ (dis)?connected(: .+)?|waiting: .+")


@posix
@pytest.mark.parametrize("name", CALLS)
def test_no_error_of_a_call_ends_a_server(name):
    """Whichever call fails, with whichever error, the server goes on, without a traceback."""
    prefix = (sys.executable, str(ROOT / "tests" / "failing.py"), ",".join(CALLS[name]))
    with Server(name, prefix=prefix) as server:

        def all_have_failed():
            for _ in range(50):
                with contextlib.suppress(ConnectionError), server.connect() as client:
                    client.sendall(b"1+1\n")
                    client.recv(100)
            assert server.process.poll() is None, server.log()
            return DONE in server.log()

        until(all_have_failed, "each error has been raised once")
        until(lambda: admitted(server), "one more is served").close()
        strange = [line for line in server.log().splitlines() if not LOG_LINE.fullmatch(line)]
        assert strange == [DONE]
