"""Settings and fixtures: a marker for slow tests, and enough descriptors for many clients."""

import contextlib
import os
import shutil
import signal

import pytest
from support import LINUX, POSIX, Server

if POSIX:
    import resource


def pytest_configure(config):
    """Register the marker."""
    config.addinivalue_line("markers", 'slow: load and storms; -m "not slow" leaves them out')


@pytest.fixture(scope="session", autouse=True)
def many_descriptors():
    """Raise the limit of descriptors for the tests: macOS gives a process 256 by default."""
    if POSIX:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Let the scripts obey Ctrl-C, even if the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def running():
    """Give a function that returns the server of a name; the tests of a module share it."""
    servers = {}
    with contextlib.ExitStack() as stack:

        def server(name):
            if name not in servers:
                servers[name] = stack.enter_context(Server(name))
            return servers[name]

        yield server


@pytest.fixture
def one_processor():
    """Give a prefix that keeps a command on one processor. The test runs on the others."""
    if not LINUX or not shutil.which("taskset"):
        yield ()
        return
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[1:] or processors)
    yield ("taskset", "-c", str(processors[0]))
    os.sched_setaffinity(0, processors)
