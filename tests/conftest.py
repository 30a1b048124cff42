"""Settings and fixtures: a marker for slow tests, and enough descriptors for many clients."""

import contextlib
import os
import shutil
import signal

import pytest
from outside import LINUX, PROCESSORS, raise_descriptor_limit
from support import POSIX, Server

if POSIX:
    import resource


def pytest_configure(config):
    """Register the marker."""
    config.addinivalue_line("markers", "slow: takes minutes; runs if the environment has SLOW=1")


def pytest_collection_modifyitems(items):
    """Skip the slow tests unless asked for."""
    if os.environ.get("SLOW") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; SLOW=1 runs it"))


@pytest.fixture(scope="session", autouse=True)
def many_descriptors():
    """Raise the limit of descriptors for the tests, and restore it afterwards."""
    if not POSIX:
        yield
        return
    limits = raise_descriptor_limit()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Let the scripts obey Ctrl-C, even if the tests run under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
    os.sched_setaffinity(0, PROCESSORS[1:] or PROCESSORS)
    yield ("taskset", "-c", str(PROCESSORS[0]))
    os.sched_setaffinity(0, PROCESSORS)
