"""Ctrl-C and SIGTERM at any moment: exit code, one line, no process left, and the next run finishes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.terminal import MAIN, STARTED, Terminal, announcing
from tiering import __version__, ingest, open_corpus, open_tier, plan_move, verify
from tiering.errors import NotFound

START = Path(__file__).parents[2] / "scripts" / "tiering"
INTERRUPTED = 130
MESSAGE = "Interrupted. Nothing is half done"
SHARD_SIZE = "16KiB"  # so small that there are hundreds
EVERY_MOMENT = bool(os.environ.get("TIERING_EVERY_INTERRUPT"))


def tiering(folder: Path, *arguments: object, environment: Mapping[str, str] | None = None) -> Terminal:
    variables = {"TERM": "xterm", **(environment or {})}
    return Terminal([sys.executable, "-c", MAIN, *map(str, arguments)], folder, variables)


def demo(folder: Path, *arguments: object, environment: Mapping[str, str] | None = None) -> Terminal:
    command = [sys.executable, "-m", "tests.faults.small_demo", "demo", "--dir", folder / "demo", *arguments]
    return Terminal([str(word) for word in command], folder, environment)


def assert_told_once(terminal: Terminal) -> None:
    assert terminal.errors.count(MESSAGE) == 1, terminal
    assert MESSAGE not in terminal.output
    assert "Traceback" not in terminal.errors + terminal.output, terminal
    assert "Exception ignored" not in terminal.errors, terminal


def assert_absent_or_whole(folder: Path) -> None:
    """Every corpus of every tier below `folder` is whole."""
    for record in folder.rglob("versions/*.json"):
        corpus = record.parents[2]
        with contextlib.suppress(NotFound):
            assert verify(open_corpus(open_tier(corpus.parent), corpus.name)).ok


@pytest.mark.parametrize("stop", ["ctrl-c", "term"])
def test_ingest_and_move_interrupted_are_finished_by_the_next(tmp_path: Path, stop: str) -> None:
    text = tmp_path / "text"
    text.write_bytes(random.Random("text").randbytes(3 << 20))
    lake, disk = open_tier(tmp_path / "lake"), open_tier(tmp_path / "disk")

    def interrupt(times: int, *command: object) -> None:
        with tiering(tmp_path, *command) as terminal:
            terminal.wait_for("web: ")  # the progress bar
            if stop == "term":
                terminal.process.terminate()
                assert terminal.end() == -signal.SIGTERM, terminal
                return
            for _ in range(times):
                terminal.press_ctrl_c()
            assert terminal.end() == INTERRUPTED, terminal
            assert_told_once(terminal)

    options = ("--to", "./lake", "--name", "web", "--reader", "text", "--shard-size", SHARD_SIZE)
    interrupt(1, "ingest", text, *options)
    assert_absent_or_whole(tmp_path)
    corpus = ingest(text, lake, "web", reader="text", shard_size=SHARD_SIZE)
    assert verify(corpus).ok
    interrupt(2, "move", "web", "--from", "./lake", "--to", "./disk")  # an impatient user
    assert_absent_or_whole(tmp_path)
    plan_move(corpus, disk).run()
    assert verify(corpus.at(disk)).ok
    assert not list(tmp_path.rglob(".tmp-*"))


MOMENTS: dict[str, tuple[str, int]] = {
    "a worker process starts": (STARTED, 3),
    "the cluster is up": ("dashboard:", 1),
    "ingest on workers": ("1. Ingest", 1),
    "move on workers": ("2. Move", 1),
    "an epoch": ("3. Train", 1),
    "another epoch": ("epoch 1", 1),
    "a fresh process resumes": ("4. Stop", 1),
    "the block volume": ("5. On to", 1),
}
USUAL = ("a worker process starts", "an epoch")


def test_demo_interrupted_is_finished_by_the_next(tmp_path: Path) -> None:
    says_so = announcing(tmp_path / "site")
    for moment in MOMENTS if EVERY_MOMENT else USUAL:
        with demo(tmp_path, environment=says_so) as terminal:
            terminal.wait_for(*MOMENTS[moment])
            terminal.press_ctrl_c()
            assert terminal.end() == INTERRUPTED, (moment, terminal)
            assert_told_once(terminal)
        assert_absent_or_whole(tmp_path / "demo")
    with demo(tmp_path) as terminal:
        terminal.wait_for("1. Ingest")
        terminal.process.terminate()  # its workers end by themselves
        assert terminal.end() == -signal.SIGTERM, terminal
    assert_absent_or_whole(tmp_path / "demo")
    with demo(tmp_path, "--json") as terminal:
        assert terminal.end() == 0, terminal
        document: dict[str, Any] = json.loads(terminal.output)
    assert document["ok"]
    assert document["resume_identical"]


NEVER = "no_module_of_this_name"
STRIKES = """
import os, sys

class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), 2)  # without the module signal, which the script must not need

sys.meta_path.insert(0, Strike())
"""


@pytest.mark.parametrize(
    "module", [NEVER, "signal", "tiering", "numpy", "pyarrow.lib", "distributed", "typer"]
)
def test_interrupted_while_python_imports(tmp_path: Path, module: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(STRIKES.format(module=module))
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    command = [sys.executable, str(START), "--version"]
    with Terminal(command, tmp_path, {"PYTHONPATH": path}) as terminal:
        code = terminal.end()
        if module == NEVER:  # no strike: what the others would have done
            assert (code, terminal.errors) == (0, ""), terminal
        else:
            assert code == INTERRUPTED, terminal
            assert_told_once(terminal)
            assert not terminal.output


def test_interrupted_while_python_winds_up(tmp_path: Path) -> None:
    """What was done is done: the exit code says so, and there is no traceback."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    with Terminal([sys.executable, str(START), "--version"], tmp_path, {"PYTHONPATH": path}) as terminal:
        assert terminal.end() == 0, terminal
        assert terminal.output == f"{__version__}\n"
        assert not terminal.errors


def test_installed_command_is_that_script() -> None:
    installed = Path(sys.executable).with_name("tiering")
    assert installed.read_text().split("\n", 1)[1] == START.read_text().split("\n", 1)[1]
