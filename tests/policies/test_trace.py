import struct
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Order
from policies.trace import Trace, order_trace
from policies.trace.formats import parse_csv, parse_log, parse_oracle

PROFILE = settings(max_examples=60, deadline=None, derandomize=True)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), min_size=1
)
LINE = '{"time": 3.5, "digest": "ab", "bytes": 7, "hit": false}'


def made(times: Sequence[float], ids: Sequence[int], sizes: Sequence[int]) -> Trace:
    return Trace(np.array(times, np.float64), np.array(ids, np.int64), np.array(sizes, np.int64))


def rows(trace: Trace) -> list[tuple[float, int, int]]:
    return list(zip(trace.times.tolist(), trace.ids.tolist(), trace.sizes.tolist(), strict=True))


@PROFILE
@given(requests=REQUESTS)
def test_parse_oracle_gives_the_records_by_time(requests: list[tuple[int, int, int]]) -> None:
    data = b"".join(struct.pack("<IQIq", *request, -1) for request in requests)
    expected = sorted(requests, key=lambda request: request[0])
    found = parse_oracle(data)
    assert found.ids.view(np.uint64).tolist() == [request[1] for request in expected]
    assert [(time, size) for time, _, size in rows(found)] == [(t, size) for t, _, size in expected]


@PROFILE
@given(requests=REQUESTS)
def test_parse_csv_and_log_tell_objects_apart_as_the_ids_do(requests: list[tuple[int, int, int]]) -> None:
    ordered = sorted(requests, key=lambda request: request[0])
    text = [f'{size},"{item},",{time}\n' for time, item, size in requests]
    log = [f'{{"hit":true,"bytes":{size},"digest":"{i}","time":{time}}}\n' for time, i, size in requests]
    for found in (parse_csv(text, ("3", "2", "1")), parse_log(log)):
        assert [(time, size) for time, _, size in rows(found)] == [(t, size) for t, _, size in ordered]
        pairs = set(zip(found.ids.tolist(), [item for _, item, _ in ordered], strict=True))
        assert len(pairs) == found.objects == len({item for _, item, _ in requests})


def test_parse_csv_finds_columns_by_name_and_passes_over_empty_lines() -> None:
    lines = ["host,bytes,when,key\n", "a,7,0.5,x\n", "\n", 'b,8,1.5,"y\nz"\n', "c,7,2,x"]
    found = parse_csv(lines, ("when", "key", "bytes"))
    assert rows(found) == [(0.5, 0, 7), (1.5, 1, 8), (2.0, 0, 7)]
    assert rows(parse_csv(lines, ("key", "bytes"))) == [(0.0, 0, 7), (1.0, 1, 8), (2.0, 0, 7)]


def test_trace_counts_objects_and_bytes() -> None:
    trace = made([1, 1, 4.5], [5, -3, 5], [10, 4, 11])
    assert (len(trace), trace.objects, trace.nbytes) == (3, 2, 25)
    assert (trace.footprint_bytes, trace.seconds) == (14, 3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "no request"),
        (([0.0], [1, 2], [1, 1]), r"times must be float64 of shape \(2,\)"),
        (([0.0, 1.0], [1, 2], [1]), r"sizes must be int64 of shape \(2,\)"),
        (([1.0, 0.5], [1, 2], [1, 1]), "never fall"),
        (([1.0, np.nan], [1, 2], [1, 1]), "finite"),
        (([1.0, 2.0], [1, 2], [1, -1]), "at least 0"),
        (([1.0, 2.0], [1, 2], [2**59, 2**59]), "below 2"),
    ],
)
def test_trace_refuses_what_is_not_whole(
    arguments: tuple[list[float], list[int], list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(*arguments)


def test_trace_refuses_another_dtype() -> None:
    with pytest.raises(ValueError, match="ids must be int64"):
        Trace(np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parse", "data", "message"),
    [
        (parse_oracle, bytes(24 * 2 + 5), "2 records of 24 bytes are followed by 5 bytes"),
        (parse_oracle, b"", "no request"),
        (parse_csv, ["time,id,size\n"], "no request"),
        (parse_csv, [], "the first line has no column 'time'"),
        (parse_csv, ["t,id,size\n", "1,a,2\n"], "the first line has no column 'time', but 't,id,size'"),
        (parse_csv, ["time,id,size\n", "1,a,2\n", "2,b\n"], "line 3 has 2 columns, not 3; e.g. 12.5,shard-7"),
        (parse_csv, ["time,id,size\n", "1,a,2.5\n"], "line 2: size '2.5' is not a number of bytes"),
        (parse_csv, ["time,id,size\n", "1,a,-2\n"], "line 2: size '-2' is not"),
        (parse_csv, ["time,id,size\n", "inf,a,2\n"], "line 2: time 'inf' is not a number of seconds"),
        (parse_csv, ["time,id,size\n", '1,"a,2\n'], "line 2 is not CSV"),
        (parse_log, [], "no request"),
        (parse_log, [LINE, LINE[:20]], 'line 2 is no line of an access log: \'{"time": 3.5'),
        (parse_log, [LINE, "\n"], "line 2 is no line"),
        (parse_log, ["[" * 100_000], "line 1 is no line"),
        (parse_log, [LINE.replace("3.5", "NaN")], "line 1 is no line"),
        (parse_log, [LINE.replace("7", "-7")], "line 1 is no line"),
        (parse_log, [LINE.replace("7", "1" + "0" * 400)], "line 1 is no line"),
        (parse_log, [LINE.replace('"ab"', "1")], "line 1 is no line"),
        (parse_log, ["3\n"], "line 1 is no line"),
    ],
)
def test_parse_names_the_place(parse: Callable[[object], Trace], data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(data)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("id",), "columns must be those of time, id and size"),
        (("a", "b", "c", "d"), "columns must be those of"),
        (("time", "", "size"), "columns must be those of"),
        (("0", "1", "2"), "numbered from 1"),
        (("1", "id", "size"), "no column '1'"),
    ],
)
def test_parse_csv_refuses_columns_that_are_not_three(columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_csv(["time,id,size\n", "1,2,3\n"], columns)


def test_order_trace_asks_for_all_objects_of_each_shard_in_its_turn() -> None:
    order = Order([100] * 12, block_rows=10, lanes=4)
    shards = [shard for shard in range(11, -1, -1) for _ in range(shard % 3)]  # none, one, or two
    sizes = [10 + number for number in range(len(shards))]
    found = order_trace(order, shards, sizes, epochs=3, world_size=2, rank=1)
    expected = [
        (0.0, number, sizes[number])
        for epoch in range(3)
        for shard in order.shards(epoch, order.rank_lanes(1, 2)).tolist()
        for number in range(len(shards))
        if shards[number] == shard
    ]
    assert rows(found) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"object_shards": [0, 3]}, r"object_shards must be in \[0, 3\), not 0 to 3"),
        ({"object_shards": [-1, 0]}, "object_shards must be in"),
        ({"object_shards": [0.5]}, "object_shards must be a flat sequence of ints"),
        ({"object_bytes": [1]}, "object_bytes must be one number or 3"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"world_size": 3}, "world_size must divide the 2 lanes"),
        ({"object_shards": []}, "no request"),
    ],
)
def test_order_trace_refuses_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    order = Order([5] * 3, lanes=2)
    with pytest.raises(ValueError, match=message):
        order_trace(order, **{"object_shards": [0, 1, 2], "object_bytes": 7, **arguments})  # type: ignore[arg-type]
