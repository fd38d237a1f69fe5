"""Real object stores on loopback for tests: moto (starts in two seconds), a Ceph RADOS gateway and rclone.

Invariant: everything started here listens on 127.0.0.1 only, answers before the context is entered, and is
dead, with its folder removed, when the context is left. The kernel kills it should the test process die.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

ACCESS_KEY_ID = "test-access-key"
SECRET_ACCESS_KEY = "test-canary-secret-4f1d"
MOTO_START_SECONDS = 60.0
RCLONE_START_SECONDS = 60.0
CEPH_START_SECONDS = 180.0
BUCKET = "tiering-tests"
REFERENCES = {
    "access_key_id": "env:TIERING_TEST_ACCESS_KEY_ID",
    "secret_access_key": "env:TIERING_TEST_SECRET_ACCESS_KEY",
}
CEPH_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An S3 server that takes `ACCESS_KEY_ID` and `SECRET_ACCESS_KEY` and holds an empty bucket `BUCKET`."""

    url: str
    kind: str

    def client(self) -> Any:
        """A botocore client, to look behind a store's back."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def options(self, **more: str | float | bool) -> dict[str, str | float | bool]:
        """Options of an S3 tier here; the references are to variables that the fixtures set."""
        return {**REFERENCES, "endpoint_url": self.url, "deadline_seconds": 20, **more}


@contextlib.contextmanager
def moto_server() -> Iterator[Endpoint]:
    """A moto server: keeps conditional writes, does not look at secrets."""
    with tempfile.TemporaryDirectory(prefix="moto-") as folder, _Daemons(Path(folder)) as daemons:
        port = free_port()
        # Werkzeug and moto print warnings of their own; they are not this project's.
        program = "from moto.server import main; main()"
        args = [sys.executable, "-W", "ignore", "-c", program, "-H", "127.0.0.1", "-p", str(port)]
        daemons.start("moto", args)
        daemons.wait(lambda: answers(port), MOTO_START_SECONDS)
        yield _with_bucket(Endpoint(f"http://127.0.0.1:{port}", "moto"))


def rclone_program() -> str | None:
    """The rclone of the environment or of the machine, or None."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else shutil.which("rclone")


@contextlib.contextmanager
def rclone_server() -> Iterator[Endpoint]:
    """``rclone serve s3``: ignores If-None-Match and If-Match, answers ranges with status 200."""
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder, _Daemons(Path(folder)) as daemons:
        port, root = free_port(), Path(folder, "root")
        root.mkdir()
        keys = f"{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}"
        args = [rclone_program() or "rclone", "--config", f"{folder}/none", "serve", "s3", str(root)]
        daemons.start("rclone", [*args, "--addr", f"127.0.0.1:{port}", "--auth-key", keys])
        daemons.wait(lambda: answers(port), RCLONE_START_SECONDS)
        yield _with_bucket(Endpoint(f"http://127.0.0.1:{port}", "rclone"))


def ceph_missing() -> str | None:
    """Why no Ceph gateway can be started here, or None."""
    missing = [program for program in CEPH_PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def ceph_rgw() -> Iterator[Endpoint]:
    """A Ceph gateway over one monitor and one OSD that keeps its objects in memory."""
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, _Daemons(Path(folder)) as daemons:
        deadline = time.monotonic() + CEPH_START_SECONDS
        root = Path(folder)
        mon_port, rgw_port = free_port(), free_port()
        conf = root / "ceph.conf"
        fsid = str(uuid.uuid4())
        conf.write_text(_CEPH_CONF.format(root=root, fsid=fsid, mon_port=mon_port, rgw_port=rgw_port))
        for name in ("mon", "osd", "rgw"):
            (root / name).mkdir()

        def command(*args: str) -> None:
            done = subprocess.run(
                args,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{args[0]} failed: {done.stderr[-2000:].decode(errors='replace')}")

        common = ("-c", str(conf))
        monmap = str(root / "monmap")
        command("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", "--fsid", fsid, monmap)
        command("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, *common)
        daemons.start("ceph-mon", ["ceph-mon", "-f", "-i", "a", *common])
        osd_uuid = str(uuid.uuid4())
        command("ceph", *common, "osd", "new", osd_uuid)
        command("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd_uuid, *common)
        daemons.start("ceph-osd", ["ceph-osd", "-f", "-i", "0", *common])
        credentials = ("--access-key", ACCESS_KEY_ID, "--secret-key", SECRET_ACCESS_KEY)
        user = ("user", "create", "--uid", "test", "--display-name", "test", *credentials)
        command("radosgw-admin", "-n", "client.rgw", *common, *user)
        daemons.start("radosgw", ["radosgw", "-f", "-n", "client.rgw", *common])
        daemons.wait(lambda: answers(rgw_port), deadline - time.monotonic())
        yield _with_bucket(Endpoint(f"http://127.0.0.1:{rgw_port}", "ceph"))


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def http_files(folder: Path) -> Iterator[str]:
    """The URL of a plain web server over `folder`, with index pages and with ranges."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def send_head(self) -> Any:
            path = Path(self.translate_path(self.path))
            asked = self.headers.get("Range")
            if not asked or not path.is_file():
                return super().send_head()
            data = path.read_bytes()
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
            self.send_response(206 if part else 416)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.end_headers()
            return io.BytesIO(part)

        def log_message(self, *_: object) -> None:
            return

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True  # clients keep their connections open
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this instant."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether an HTTP server answers on `port`, with whatever status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _with_bucket(endpoint: Endpoint) -> Endpoint:
    client = endpoint.client()
    client.create_bucket(Bucket=BUCKET)
    client.close()
    return endpoint


class _Daemons:
    """Child processes that end with the context, last one first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, args: Sequence[str]) -> None:
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self._folder / f"{name}.out").open("wb") as output:
            child = subprocess.Popen(
                [*dies_with_us, *args], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self._children.append((name, child))

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Poll `ready` until it is true; a child that ended or the deadline is a RuntimeError."""
        deadline = time.monotonic() + seconds
        while not ready():
            for name, child in self._children:
                if child.poll() is not None:
                    raise RuntimeError(f"{name} ended with {child.returncode}: {self._tail(name)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer in {seconds:.0f} s: {self._tail(self._children[-1][0])}")
            time.sleep(0.05)

    def __enter__(self) -> _Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        for _name, child in reversed(self._children):
            child.kill()  # nothing they hold outlives the folder
        for _name, child in self._children:
            child.wait()

    def _tail(self, name: str) -> str:
        return (self._folder / f"{name}.out").read_bytes()[-2000:].decode(errors="replace")


_CEPH_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc secure
run dir = {root}
admin socket = {root}/$name.asok
log file = {root}/$name.log
log to stderr = false
err to stderr = false
mon cluster log file = {root}/cluster.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
[mon]
mon data = {root}/mon
mon warn on insecure global id reclaim allowed = false
[osd]
osd data = {root}/osd
osd journal = {root}/osd/journal
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[client.rgw]
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{rgw_port} tcp_nodelay=1
rgw gc obj min wait = 5
rgw gc processor period = 10
rgw enable ops log = false
rgw lc debug interval = -1
"""
