"""One client's conversation, without a network: bytes in, bytes out."""

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import load

server3 = load("server3")

MAX_LINE = server3.MAX_LINE
TOO_LONG = b"error: line longer than %d bytes" % MAX_LINE
WIDE = b"1" + b" " * (MAX_LINE - 2) + b"2"  # as long as a line may be

PIECES = st.one_of(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"1+1\n", b"2*3\r\n", b"(1", b")\n", b"1/0\n", b"\0", b"\xff", b""]
        + [b"1" + b" " * size for size in (*range(MAX_LINE - 3, MAX_LINE + 3), 3 * MAX_LINE)]
    ),
    st.binary(max_size=6),
)
STREAMS = st.lists(PIECES, max_size=12)
quickly = settings(deadline=None, database=None, print_blob=True, max_examples=100)


def talk(conversation, pieces):
    """Return all replies to the pieces."""
    return b"".join(map(conversation.feed, pieces)) + conversation.end()


def lines_of(stream):
    """Return the lines in the stream, without their ends."""
    *ended, last = stream.split(b"\n")
    return [line[:-1] if line.endswith(b"\r") else line for line in ended + [last] * bool(last)]


@quickly
@given(STREAMS, st.lists(st.integers(0, 5000)))
@example([WIDE, b"\r", b"\n"], [])
@example([WIDE, b"0\r\n"], [1024, 1025, 1026])
@example([WIDE, b"\r0", b"\n1\n"], [1025])
@example([b"1" * 5000, b"\n1+1"], [1025, 1026, 1027, 3000])
def test_pieces_do_not_matter(stream, cuts):
    """However a stream is cut into pieces, the replies are the same."""
    whole = b"".join(stream)
    expected = talk(server3.Conversation(), [whole])
    assert talk(server3.Conversation(), stream) == expected
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    cut = [whole[begin:end] for begin, end in zip(places, places[1:])]
    assert talk(server3.Conversation(), cut) == expected
    assert talk(server3.Conversation(), [bytes([byte]) for byte in whole]) == expected


@quickly
@given(STREAMS)
@example([WIDE, b"\n", WIDE, b"\r\n", WIDE])
@example([WIDE, b"3\n", WIDE, b"3\r\n", WIDE, b"3"])
@example([b"\r\r\n", b"\r"])
def test_one_reply_a_line(stream):
    """Every line gets one reply line, in order: the same as if it were sent alone."""
    lines = lines_of(b"".join(stream))
    *replies, rest = talk(server3.Conversation(), stream).split(b"\n")
    assert rest == b""
    assert len(replies) == len(lines)
    for line, reply in zip(lines, replies):
        assert (reply == TOO_LONG) == (len(line) > MAX_LINE)
        if len(line) <= MAX_LINE:
            assert reply + b"\n" == server3.Conversation().feed(line + b"\r\n")
            assert reply.decode().isprintable()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"1+1", b"2"),
        (b" 7 // 2 ", b"3"),
        (b"1/0", b"error: division by zero"),
        (b"1" + b"+1" * (MAX_LINE // 2 - 1) + b" ", b"%d" % (MAX_LINE // 2)),
        (b"1" + b"+1" * (MAX_LINE // 2), TOO_LONG),
        (b" " * (MAX_LINE - 1) + b"7", b"7"),
        (b" " * MAX_LINE + b"7", TOO_LONG),
        (b"1" * 100_000, TOO_LONG),
    ],
)
def test_replies(line, end, reply):
    """The reply to a line does not depend on its end, nor on what follows."""
    conversation = server3.Conversation()
    assert talk(conversation, [line + end]) == reply + b"\n"
    if end:
        assert talk(conversation, [line + end + b"2+2\n"]) == reply + b"\n4\n"


@pytest.mark.parametrize(
    "line", [b"\n", b"\r\n", b"\r", b"  \n", b"\0\n", b"1\0\n", b"\xff\n", b"1\r+1\n", b"\x0c1\n"]
)
def test_errors(line):
    """A line that is no expression gets one error line, of printable characters."""
    reply = talk(server3.Conversation(), [line])
    assert reply.startswith(b"error: ")
    assert reply.endswith(b"\n")
    assert reply[:-1].decode().isprintable()


def test_nothing_is_said_to_nobody():
    """An empty conversation has no reply, and end() replies only once."""
    conversation = server3.Conversation()
    assert conversation.feed(b"") == b""
    assert conversation.end() == b""
    assert conversation.feed(b"1+1\n2+2") == b"2\n"
    assert conversation.end() == b"4\n"
    assert conversation.end() == b""


def test_a_long_line_is_refused_at_once():
    """A line that is too long is answered before it ends, and its rest is dropped."""
    conversation = server3.Conversation()
    assert conversation.feed(b"1" * 5000) == TOO_LONG + b"\n"
    assert conversation.feed(b"+1" * 5000) == b""
    assert conversation.feed(b"+1\n3*3\n") == b"9\n"
    assert conversation.end() == b""


def test_an_endless_line_takes_no_memory():
    """The rest of a line that is too long is not kept in memory."""
    conversation, piece = server3.Conversation(), b"1" * 1000
    tracemalloc.start()
    try:
        replies = b""
        for _ in range(10_000):
            replies += conversation.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert replies == TOO_LONG + b"\n"
    assert peak < 100_000
