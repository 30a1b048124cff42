"""Record the moving pictures of the README: real sessions of the real scripts, as animated SVG.

    python3 tests/record.py

writes .github/server1.svg, .github/server3.svg and the still picture .github/chat.svg. It needs
Linux, bash, tmux (3.0 or newer) and Python, port 10000 free, and a minute. tmux runs the sessions
and is the terminal; this script types at a person's pace, looks at the screen many times a second,
and draws what it saw. The colours are the pictures' own: the scripts print none.
"""

import contextlib
import dataclasses
import html
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES = ROOT / ".github"
PORT = 10000
ROWS = 12  # of a client's pane
SERVER_COLUMNS = 36  # for "server1 listening on 127.0.0.1:10000"
CLIENT_COLUMNS = 66
WAIT = 30  # seconds to wait for what the scripts print
LOOK = 0.02  # seconds from look to look
KEY = (0.04, 0.1)  # seconds from key to key, from fast to slow
HOLD = 3.5  # seconds for which the last screen stays
MAX_SECONDS, MAX_BYTES = 30, 500_000  # of a picture

# --- The sessions -------------------------------------------------------------------------------


def one_at_a_time(server, first, second):
    """server1: a second client is refused, and served after the first has left."""
    start(server, "server1")
    connect(first)
    first.enter("2 + 3 * 4", then=">")
    time.sleep(0.5)
    connect(second, then="$")  # refused
    time.sleep(2.5)
    first.enter("2 ** 64", then=">")
    time.sleep(0.5)
    first.enter("bye", then="$")
    time.sleep(0.5)
    connect(second)
    second.enter("6 * 7", then=">")


def both_at_once(server, first, second):
    """server3: two clients are served at the same time."""
    start(server, "server3")
    connect(first)
    connect(second)
    talks = [
        threading.Thread(target=talk, args=(first, "2 + 3 * 4", "2 ** 100", "(1 + 2) / 4")),
        threading.Thread(target=talk, args=(second, "0.1 + 0.2", "-7 // 2", "1 / 0")),
    ]
    for thread in talks:
        thread.start()
        time.sleep(0.4)
    for thread in talks:
        thread.join()


def start(pane, name):
    """Start a server on the port that it proposes."""
    pane.enter(f"python3 {name}.py", then=f"Port [{PORT}]:")
    pane.enter("", then=f"{name} listening on 127.0.0.1:{PORT}")
    time.sleep(0.5)


def connect(pane, then=">"):
    """Start a client, which connects to the host and the port that it proposes."""
    pane.enter("python3 client.py", then="Host [localhost]:")
    pane.enter("", then=f"Port [{PORT}]:")
    pane.enter("", then=then)
    time.sleep(0.5)


def talk(pane, *lines):
    """Send the lines, each after the reply to the one before."""
    for line in lines:
        pane.enter(line, then=">")
        time.sleep(1)


# --- The terminal -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Screen:
    """What a pane shows: its rows, and the column and the row of its cursor."""

    rows: tuple
    cursor: tuple

    def last(self):
        """Return the last row that is not blank, without the blanks at its end."""
        return next((row.rstrip() for row in reversed(self.rows) if row.strip()), "")


class Pane:
    """A pane of tmux: a shell, a place to type at."""

    def __init__(self, tmux, target, seed):
        self.tmux, self.target = tmux, target
        self.random = random.Random(seed)
        self.screen = Screen((), (0, 0))

    def enter(self, text, then):
        """Type text and Enter, as a person does; wait until the pane's last row is `then`."""
        time.sleep(0.5)
        for character in text:
            self.tmux.run("send-keys", "-t", self.target, "-l", "--", character)
            time.sleep(self.random.uniform(*KEY))
        time.sleep(0.2)
        self.tmux.run("send-keys", "-t", self.target, "Enter")
        self.wait(then)

    def wait(self, last):
        """Wait until the pane's last row is `last`."""
        deadline = time.monotonic() + WAIT
        while self.screen.last() != last:
            if time.monotonic() > deadline or self.tmux.ended:
                raise TimeoutError(f"{last!r} is not what {self.target} shows: {self.screen.rows}")
            time.sleep(LOOK)


class Tmux:
    """A tmux of its own, with a server's pane on the left and two clients' panes on the right."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="record-")  # for tmux's socket
        self.ended = False
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        shell = ["env", "-i", f"PATH={path}", "PS1=$ ", "LANG=C.UTF-8", "TERM=screen"]
        shell += ["bash", "--norc", "--noprofile", "-i"]
        width, height = SERVER_COLUMNS + 1 + CLIENT_COLUMNS, ROWS + 1 + ROWS
        size = ["-x", str(width), "-y", str(height)]
        self.run("new-session", "-d", *size, "-s", "s", "-c", ROOT, *shell)
        self.run("set-option", "-g", "status", "off")
        self.run("resize-window", "-t", "s", *size)
        self.run("split-window", "-h", "-l", str(CLIENT_COLUMNS), "-t", "s:0.0", "-c", ROOT, *shell)
        self.run("split-window", "-v", "-l", str(ROWS), "-t", "s:0.1", "-c", ROOT, *shell)
        self.panes = [Pane(self, f"s:0.{number}", seed=number) for number in range(3)]

    def run(self, *arguments):
        """Run a tmux command; return what it prints."""
        command = ["tmux", "-L", "record", "-f", "/dev/null", *map(str, arguments)]
        variables = {**os.environ, "TMUX_TMPDIR": self.directory.name}
        result = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=variables
        )
        return result.stdout

    def look(self):
        """Look at all panes; return their screens."""
        commands = []
        for pane in self.panes:
            commands += ["display-message", "-p", "-t", pane.target]
            commands += ["#{pane_height} #{cursor_x} #{cursor_y}", ";"]
            commands += ["capture-pane", "-p", "-N", "-t", pane.target, ";"]
        lines = self.run(*commands[:-1]).split("\n")
        for pane in self.panes:
            height, *cursor = map(int, lines.pop(0).split())
            pane.screen = Screen(tuple(lines[:height]), tuple(cursor))
            del lines[:height]
        return [pane.screen for pane in self.panes]

    def close(self):
        """End all that runs in the panes."""
        self.ended = True
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("kill-server")
        self.directory.cleanup()


def record(session):
    """Play a session; return its frames, (seconds, screens) at each change, and its length."""
    tmux = Tmux()
    try:
        deadline = time.monotonic() + WAIT
        while [screen.last() for screen in tmux.look()] != ["$"] * 3:
            assert time.monotonic() < deadline, "no prompt"
        failure = []

        def play():
            try:
                session(*tmux.panes)
            except BaseException as error:
                failure.append(error)

        player = threading.Thread(target=play)
        begun = time.monotonic()
        frames = [(0, tmux.look())]
        player.start()
        while player.is_alive():
            time.sleep(LOOK)
            seconds = time.monotonic() - begun
            screens = tmux.look()
            if screens != frames[-1][1]:
                frames.append((seconds, screens))
        if failure:
            raise failure[0]
        return frames, frames[-1][0] + HOLD
    finally:
        tmux.close()


# --- The picture --------------------------------------------------------------------------------
#
# A row that shows a text from one moment to another is a group that an animation makes visible
# then. What is there at the end is visible without any animation, so a program that shows none
# shows the last screen. Each run of text has the length of its columns, in whatever font.

SIZE = 14  # of the font
CELL, LINE = 8.4, 19  # a character's width, a row's height
PAD = 14
BAR = 28  # the height of the titles over the panes
STYLE = f"""
text {{ font: {SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono',
  'Liberation Mono', monospace; white-space: pre }}
.title {{ fill: #8b949e }}
.prompt {{ fill: #3fb950 }}
.typed {{ fill: #f0f6fc }}
.said {{ fill: #b1bac4 }}
.reply {{ fill: #79c0ff }}
.error {{ fill: #ff7b72 }}
.cursor {{ fill: #8b949e }}
"""
COLOURS = [  # what a line begins with, the class of that, and of the rest
    (r"[$>] ", "prompt", "typed"),
    (r"(Host|Port) \[\w+\]: ", "said", "typed"),
    (r"(client|error): ", "error", "error"),
    (r"server\d listening|Connected to|[\d.]+:\d+ (connected|disconnected)", "said", "said"),
]
TITLES = ("server", "client 1", "client 2")
PLACES = (  # of the panes' first characters
    (PAD, BAR + PAD),
    (PAD + (SERVER_COLUMNS + 2) * CELL, BAR + PAD),
    (PAD + (SERVER_COLUMNS + 2) * CELL, BAR + PAD + ROWS * LINE + PAD + BAR + PAD),
)
WIDTH = round(PAD + (SERVER_COLUMNS + 2 + CLIENT_COLUMNS) * CELL + PAD)
HEIGHT = round(PLACES[2][1] + ROWS * LINE + PAD)


def draw(description, frames, length):
    """Return the SVG of the frames, which repeats after `length` seconds."""
    rules, shapes = [STYLE], []
    if len(frames) > 1:
        rules.append(
            f"g, .cursor {{ animation: {length:.2f}s step-end infinite }}\n"
            "g { visibility: hidden }\n"
            "g.last { visibility: visible }\n"
            "@media (prefers-reduced-motion: reduce) { g, .cursor { animation: none !important } }"
        )
    names = {}

    def animation(steps):
        """Return the attribute for an animation of these steps, {seconds: declaration}."""
        body = "".join(f"{100 * at / length:.3f}%{{{what}}}" for at, what in steps.items())
        if body not in names:
            names[body] = f"k{len(names)}"
            rules.append(f"@keyframes {names[body]}{{{body}}}")
        return f'style="animation-name:{names[body]}"'

    for number, (left, top) in enumerate(PLACES):
        screens = [(seconds, screens[number]) for seconds, screens in frames]
        shapes.append(cursor(screens, left, top, animation))
        for begin, end, y, runs in stretches(screens):
            drawn = "".join(draw_run(run, left, top + y * LINE + SIZE) for run in runs)
            if end is None and begin == 0:
                shapes.append(drawn)
            elif end is None:
                steps = {0: "visibility:hidden", begin: "visibility:visible"}
                shapes.append(f'<g class="last" {animation(steps)}>{drawn}</g>')
            else:
                steps = {begin: "visibility:visible", end: "visibility:hidden"}
                shapes.append(f"<g {animation(steps)}>{drawn}</g>")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" xml:space="preserve" role="img">',
            f"<title>{html.escape(description)}</title>",
            f"<style>{chr(10).join(rules)}</style>",
            *frame(),
            *shapes,
            "</svg>\n",
        ]
    )


def frame():
    """Return the window around the panes, and their titles."""
    middle = PLACES[1][0] - CELL
    lower = PLACES[2][1] - PAD - BAR
    inner = WIDTH - 1
    yield (
        f'<rect x=".5" y=".5" width="{inner}" height="{HEIGHT - 1}" rx="8" fill="#0d1117" '
        'stroke="#30363d"/>'
    )
    for left, top, right in ((1, 0, inner), (middle, lower, inner)):
        yield (
            f'<rect x="{left}" y="{top + 1}" width="{right - left:.1f}" height="{BAR - 1}" '
            f'rx="{0 if top else 7}" fill="#161b22"/>'
        )
    yield (
        f'<path d="M1 {BAR}.5H{inner}M{middle:.1f} 1V{HEIGHT - 1}M{middle:.1f} {lower}.5H{inner}'
        f'M{middle:.1f} {lower + BAR}.5H{inner}" stroke="#30363d" fill="none"/>'
    )
    for title, (left, top) in zip(TITLES, PLACES):
        yield f'<text class="title" x="{left:.1f}" y="{top - PAD - 9}">{title}</text>'


def cursor(screens, left, top, animation):
    """Return a pane's cursor, which moves."""
    steps = {}
    for seconds, screen in screens:
        x, y = left + screen.cursor[0] * CELL, top + screen.cursor[1] * LINE
        move = f"transform:translate({x:.1f}px,{y:.1f}px)"
        if move not in list(steps.values())[-1:]:
            steps[seconds] = move
    moves = animation(steps)[:-1] if len(screens) > 1 else 'style="'
    return f'<rect class="cursor" width="{CELL}" height="{LINE - 1}" {moves};{move}"/>'


def stretches(screens):
    """Yield (begin, end, y, runs) for each time in which a row shows the same, but not blank.

    The end is None for what is there to the last.
    """
    showing = {}  # by row: since when, what
    for seconds, screen in screens:
        for y, runs in enumerate(coloured(screen.rows)):
            begin, before = showing.get(y, (0, []))
            if runs != before:
                if before:
                    yield begin, seconds, y, before
                showing[y] = seconds, runs
    for y, (begin, runs) in showing.items():
        if runs:
            yield begin, None, y, runs


def coloured(rows):
    """Return for each row its runs: (column, text, class)."""
    result = []
    goes_on = None  # the class of a line that goes on in the next row
    for row in rows:
        split, start, rest = (0, "", goes_on) if goes_on else colour(row)
        runs = [(0, row[:split], start), (split, row[split:], rest)]
        result.append([run for run in runs if run[1].strip()])
        goes_on = rest if len(row) == CLIENT_COLUMNS else None
    return result


def colour(line):
    """Return where the line's second run begins, and the classes of both."""
    for pattern, start, rest in COLOURS:
        if found := re.match(pattern, line):
            return found.end(), start, rest
    return 0, "", "reply"


def draw_run(run, left, baseline):
    """Return a run as text of exactly its columns' width."""
    column, text, kind = run
    column += len(text) - len(text.lstrip())
    text = text.strip()
    return (
        f'<text class="{kind}" x="{left + column * CELL:.1f}" y="{baseline}" '
        f'textLength="{len(text) * CELL:.1f}" lengthAdjust="spacingAndGlyphs">'
        f"{html.escape(text)}</text>"
    )


def main():
    """Record both sessions and write the pictures."""
    for program in ("tmux", "bash"):
        if not shutil.which(program):
            sys.exit(f"record: {program} is not installed")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            sys.exit(f"record: port {PORT} is not free: {error.strerror}")
    PICTURES.mkdir(exist_ok=True)
    for name, session in (("server1", one_at_a_time), ("server3", both_at_once)):
        frames, length = record(session)
        write(name, session.__doc__, frames, length)
        if length > MAX_SECONDS:
            sys.exit(f"record: {name}.svg takes longer than {MAX_SECONDS} s; try again")
    write("chat", session.__doc__, frames[-1:], length)


def write(name, description, frames, length):
    """Write a picture, and say how long and how big it is."""
    picture = draw(description, frames, length).encode()
    if len(picture) > MAX_BYTES:
        sys.exit(f"record: {name}.svg is bigger than {MAX_BYTES} bytes")
    (PICTURES / f"{name}.svg").write_bytes(picture)
    print(f".github/{name}.svg: {length:.1f} s, {len(frames)} frames, {len(picture)} bytes")


if __name__ == "__main__":
    main()
