"""What the figures of bench/loader hang on: digests, the relay's count, the chart and the tables."""

from __future__ import annotations

import json
import socket
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.loader.chart import bars
from bench.loader.compare import beside_peers
from bench.loader.relay import relay
from bench.loader.report import BEGIN, END, embed
from bench.peers.rows import Rows, Seen, write_jpegs

Data = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def data() -> Data:
    return np.random.default_rng(7).integers(0, 257, (64, 33), dtype=np.uint16)


def seen(batches: Iterator[Data] | list[Data]) -> str:
    found = Seen()
    for batch in batches:
        found.add(batch)
    return found.digest()


def test_digest_of_rows_is_the_same_in_any_order_and_batches(data: Data) -> None:
    shuffled = data[np.random.default_rng(1).permutation(len(data))]
    assert seen([data]) == seen(np.split(shuffled, 4))


def test_digest_of_rows_tells_a_row_that_came_twice_or_was_changed(data: Data) -> None:
    twice, changed = data.copy(), data.copy()
    twice[5] = twice[6]
    changed[5, [1, 2]] = changed[5, [2, 1]] + np.array([1, 0], np.uint16)
    assert len({seen([data]), seen([twice]), seen([changed]), seen([data[:-1]])}) == 4


def test_rows_of_an_array_come_back_from_their_bytes(tmp_path: Path, data: Data) -> None:
    np.save(tmp_path / "rows.npy", data)
    rows = Rows(tmp_path / "rows.npy")
    assert np.array_equal(np.stack([rows.decode(rows.raw(index)) for index in range(len(rows))]), data)
    assert np.array_equal(rows.gather([3, 1]), data[[3, 1]])


def test_rows_of_files_are_cut_where_each_ends(tmp_path: Path) -> None:
    from bench.loader.scale import jpeg_files

    files = jpeg_files(3)
    write_jpegs(tmp_path / "jpeg", files)
    rows = Rows(tmp_path / "jpeg")
    assert [rows.raw(index) for index in range(len(rows))] == files
    assert rows.gather([0, 2]).shape == (2, 224, 224, 3)


def test_relay_counts_what_the_server_sent_and_ends_its_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = connection.recv(100)
                connection.sendall(asked * 1000)
                connection.recv(1)

        server = threading.Thread(target=serve)
        server.start()
        with relay(f"http://127.0.0.1:{listener.getsockname()[1]}") as counted:
            host, port = counted.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as client:
                client.sendall(b"12345")
                got = 0
                while got < 5000:
                    got += len(client.recv(1 << 16))
                assert counted.received_bytes == 5000
        server.join()


def test_bars_have_lengths_in_proportion_from_zero() -> None:
    chart = bars("a <title>", "of & what", [("one", 100.0, "own"), ("two", 25.0, "peer")])
    root = ET.fromstring(chart)
    widths = [float(bar.get("width", 0)) for bar in root.findall("{http://www.w3.org/2000/svg}rect")[1:]]
    assert widths[0] == 4 * widths[1]


def test_peers_are_beside_their_fastest_variant() -> None:
    def one(speed: int, peer: str | None) -> dict[str, Any]:
        return {"peer": peer, "left": {"rows_per_second": speed}, "copied": {"rows_per_second": speed // 2}}

    figures = {"own": one(600, None), "grain, 0": one(20, "grain"), "grain, 2": one(30, "grain")}
    found: Any = beside_peers(figures, ["own"], {"grain": 30.0})
    assert list(found) == ["grain"]
    assert found["grain"]["aim"] == 30.0
    assert found["grain"]["left"] == {
        "fastest": "grain, 2",
        "rows_per_second": 30,
        "times_as_fast": {"own": 20.0},
    }


def test_embed_replaces_what_stands_between_the_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    ways = {"loader": {"mb_per_second": 5, "ratio": 0.95}}
    document = {
        "machine": {"cores": 2, "cpu": "a processor", "python": "3.11"},
        "cases": {"codec": {"aim": 0.8, "ways": ways}},
    }
    embed(json.loads(json.dumps(document)), page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "| loader | 5 | 0.95 |" in text
    assert "old" not in text


def test_embed_into_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no <!-- figures"):
        embed({"machine": {"cores": 2, "cpu": "", "python": ""}, "cases": {}}, page)
