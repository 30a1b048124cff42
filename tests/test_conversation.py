"""One client's conversation, without a network: bytes in, bytes out."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import load

server3 = load("server3")
MAX_LINE = server3.MAX_LINE
TOO_LONG = b"error: line longer than %d bytes\n" % MAX_LINE

PIECES = st.one_of(
    st.sampled_from(
        [b"\n", b"\r\n", b"1+1\n", b"2*3\r\n", b"(1", b")\n", b"1/0\n", b"\0", b"\xff", b""]
        + [b"1" + b" " * size for size in (*range(MAX_LINE - 3, MAX_LINE + 3), 3 * MAX_LINE)]
    ),
    st.binary(max_size=6),
)
STREAMS = st.lists(PIECES, max_size=12)
quickly = settings(deadline=None, database=None, print_blob=True, max_examples=100)


def talk(pieces):
    """Return all replies to the pieces."""
    conversation = server3.Conversation()
    return b"".join(map(conversation.feed, pieces)) + conversation.end()


@quickly
@given(STREAMS, st.lists(st.integers(0, 5000)))
@example([b"1" * 5000, b"\n1+1"], [1024, 1025, 1026, 3000])  # cuts before, at and behind the limit
@example([b"1" * MAX_LINE, b"\n1+1"], [1023, 1024, 1025])
def test_however_a_stream_is_cut_the_replies_are_the_same(stream, cuts):
    """Also byte by byte."""
    whole = b"".join(stream)
    expected = talk([whole])
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    assert talk([whole[begin:end] for begin, end in zip(places, places[1:])]) == expected
    assert talk([bytes([byte]) for byte in whole]) == expected


@quickly
@given(STREAMS)
def test_every_line_gets_one_reply_in_order(stream):
    """The same as if it were sent alone; the last one may have no end."""
    whole = b"".join(stream)
    *lines, last = whole.split(b"\n")
    alone = [talk([line + b"\n"]) for line in lines + [last] * bool(last)]
    assert talk([whole]) == b"".join(alone)
    assert all(reply.endswith(b"\n") and reply.count(b"\n") == 1 for reply in alone)


def test_a_line_may_have_1024_bytes_without_its_lf():
    """A CR counts."""
    longest = b" " * (MAX_LINE - 1) + b"7"
    assert MAX_LINE == 1024
    assert talk([longest]) == talk([longest + b"\n"]) == b"7\n"
    assert talk([b" " + longest]) == talk([longest + b"\r\n"]) == TOO_LONG


def test_a_long_line_is_refused_before_it_ends():
    """At its byte 1,025. Its rest is dropped, and the next line is answered."""
    conversation = server3.Conversation()
    assert conversation.feed(b"1" * MAX_LINE) == b""
    assert conversation.feed(b"1") == TOO_LONG
    assert conversation.feed(b"+1" * 5000) == b""
    assert conversation.feed(b"+1\n3*3\n") == b"9\n"
    assert conversation.end() == b""


def test_nothing_is_said_to_nobody():
    """An empty conversation has no reply, and end() replies only once."""
    conversation = server3.Conversation()
    assert conversation.feed(b"") + conversation.end() == b""
    assert conversation.feed(b"1+1\n2+2") == b"2\n"
    assert conversation.end() == b"4\n"
    assert conversation.end() == b""


def test_an_endless_line_takes_no_memory():
    """The rest of a line that is too long is not kept."""
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none.
    conversation, piece = server3.Conversation(), b"1" * 1000
    tracemalloc.start()
    try:
        replies = b""
        for _ in range(1000):
            replies += conversation.feed(piece)
        assert replies == TOO_LONG
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
