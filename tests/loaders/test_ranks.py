from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.ranks import MAX_LANES, choose_lanes, find_rank
from tests.corpora import run_python
from tiering.errors import UsageError

MARKS = ("SLURM_", "OMPI_", "MV2_", "PMI_", "PMIX_")
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "11", "OMPI_COMM_WORLD_SIZE": "16", "PMIX_RANK": "11"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name in TORCHRUN or name.startswith(MARKS)]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, *variables: dict[str, str]) -> None:
    for some in variables:
        for name, value in some.items():
            monkeypatch.setenv(name, value)


def test_rank_without_arguments_or_environment_is_the_only_one() -> None:
    assert find_rank(None, None) == (0, 1)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        (TORCHRUN, (3, 4)),
        (STEP, (5, 8)),
        ({key: value for key, value in STEP.items() if key != "SLURM_STEP_NUM_TASKS"}, (5, 8)),
        (OPEN_MPI, (11, 16)),
        ({"MV2_COMM_WORLD_RANK": "2", "MV2_COMM_WORLD_SIZE": "3"}, (2, 3)),
        (MPICH, (1, 2)),
    ],
)
def test_rank_comes_from_each_launcher(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: tuple[int, int]
) -> None:
    set_all(monkeypatch, variables)
    assert find_rank(None, None) == found


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ((TORCHRUN, STEP, OPEN_MPI, MPICH), (3, 4)),
        # mpirun on two nodes of a Slurm job: its daemons are a step of two tasks, and hand that on.
        ((STEP | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, OPEN_MPI), (11, 16)),
        ((OPEN_MPI, MPICH), (11, 16)),
        # A job that was submitted by a rank of another one inherits that one's variables.
        ((STEP, {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}), (5, 8)),
        ((STEP, {"RANK": "0", "WORLD_SIZE": "1"}), (0, 1)),
    ],
)
def test_rank_where_sources_differ_is_that_of_the_first(
    monkeypatch: pytest.MonkeyPatch, sources: tuple[dict[str, str], ...], found: tuple[int, int]
) -> None:
    set_all(monkeypatch, *sources)
    assert find_rank(None, None) == found


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # a batch script
        {"SLURM_NTASKS": "8"},  # the shell of salloc on a login node
        STEP | {"SLURM_STEP_ID": str(0xFFFF_FFFA), "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"SLURM_STEP_ID": str(0xFFFF_FFFA), "SLURM_PROCID": "0"},
        STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash in a job of eight tasks
        STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},
    ],
)
def test_rank_in_a_shell_or_batch_script_of_slurm_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    set_all(monkeypatch, variables)
    assert find_rank(None, None) == (0, 1)


def test_rank_of_pmix_without_a_world_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"PMIX_RANK": "0"})
    with pytest.raises(UsageError, match="PMIX_RANK = '0'"):
        find_rank(None, None)
    assert find_rank(2, 4) == (2, 4)


def test_rank_as_given_wins_over_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, TORCHRUN, STEP, OPEN_MPI)
    assert find_rank(1, 2) == (1, 2)


def test_rank_asks_no_torch_that_was_not_imported_or_has_no_process_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, TORCHRUN)
    for available in (False, True):
        module = ModuleType("torch.distributed")
        module.__dict__.update(is_available=lambda: available, is_initialized=lambda: False)  # noqa: B023
        monkeypatch.setitem(sys.modules, "torch.distributed", module)
        assert find_rank(None, None) == (3, 4)


def test_rank_of_an_initialised_process_group_wins_over_the_environment() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'corpus-tiering[torch]'")
    out = run_python(
        "import json, os\n"
        "os.environ.update(RANK='3', WORLD_SIZE='4')\n"
        "from loaders.ranks import find_rank\n"
        "before = find_rank(None, None)\n"
        "import torch.distributed as dist\n"
        "from torch.testing._internal.distributed.fake_pg import FakeStore\n"
        "imported = find_rank(None, None)\n"
        "dist.init_process_group('fake', rank=5, world_size=6, store=FakeStore())\n"
        "print(json.dumps([before, imported, find_rank(None, None)]))\n"
        "dist.destroy_process_group()\n"
    )
    assert json.loads(out) == [[3, 4], [3, 4], [5, 6]]


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2)])
def test_rank_given_by_half_is_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(UsageError, match="both or neither"):
        find_rank(rank, world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0), (0, -1)])
def test_rank_outside_of_its_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(UsageError, match="count from 0"):
        find_rank(rank, world_size)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0"}, "RANK is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK = 'first'"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE = ''"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK = '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE = '2.0'"),
        ({"RANK": "0", "WORLD_SIZE": "٣"}, "WORLD_SIZE = '٣'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 is not one of WORLD_SIZE = 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK = 0 is not one of WORLD_SIZE = 0"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, "SLURM_PROCID is set and SLURM_STEP_NUM_TASKS is not"),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, "SLURM_NTASKS is set and SLURM_PROCID is not"),
        (STEP | {"SLURM_STEP_ID": "batch"}, "SLURM_STEP_ID = 'batch'"),
        (STEP | {"SLURM_PROCID": "8"}, "SLURM_PROCID = 8 is not one of SLURM_STEP_NUM_TASKS = 8"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_RANK is set"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE is set"),
        ({"PMI_RANK": "x", "PMI_SIZE": "2"}, "PMI_RANK = 'x'"),
    ],
)
def test_rank_in_variables_that_make_no_sense_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(UsageError, match=named):
        find_rank(None, None)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "lanes"),
    [(256, 1, 64), (256, 8, 64), (100, 1, 4), (100, 8, 32), (7, 1, 1), (1, 64, 64), (12, 2, 8)],
)
def test_lanes_are_by_default_the_largest_power_of_two_that_divides_the_global_batch(
    batch_size: int, world_size: int, lanes: int
) -> None:
    assert choose_lanes(None, batch_size, world_size) == lanes


@given(st.integers(1, 5000), st.integers(1, 300))
def test_lanes_chosen_by_default_fit_or_the_hint_names_some_that_do(batch_size: int, world_size: int) -> None:
    try:
        lanes = choose_lanes(None, batch_size, world_size)
    except UsageError as error:
        named = (error.hint or "").partition("[")[2].partition("]")[0].split(",")
        lanes = choose_lanes(int(named[0]), batch_size, world_size)
    else:
        assert lanes <= MAX_LANES
    assert batch_size * world_size % lanes == 0
    assert lanes % world_size == 0


@pytest.mark.parametrize("lanes", [0, -1, 3, 512])
def test_lanes_that_do_not_divide_the_global_batch_are_refused_with_an_example(lanes: int) -> None:
    with pytest.raises(UsageError, match="does not divide the global batch of 256 rows") as caught:
        choose_lanes(lanes, 256, 1)
    assert caught.value.hint == "Example: lanes=64"


def test_world_size_that_does_not_divide_the_lanes_is_refused_with_lanes_that_fit() -> None:
    with pytest.raises(UsageError, match="world size 3 does not divide the 64 lanes") as caught:
        choose_lanes(None, 256, 3)
    assert "[3, 6, 12, 24, 48, 96]" in str(caught.value)
