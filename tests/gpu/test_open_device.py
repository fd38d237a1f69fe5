"""Opening a GPU: names, what may be missing, and the glue to cupy and kvikio on stand-ins for them."""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loaders import Loader, gpu_device
from loaders.gpu_device import on_stream, open_device
from tests.gpu.host_device import HostEvent, HostFile, make
from tiering import open_tier
from tiering.errors import CapacityExceeded, UsageError


@pytest.mark.parametrize(
    "name", ["cuda", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "CUDA:0", "", "cuda:99999"]
)
def test_a_malformed_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"is no device.*'cuda:0'"):
        open_device(name)


class FakeArray(np.ndarray[Any, Any]):
    """Like `cupy.ndarray`."""

    @property
    def data(self) -> Any:
        address = self.ctypes.data

        def copy(source: int, nbytes: int, stream: Any) -> None:
            ctypes.memmove(address, source, nbytes)

        return SimpleNamespace(ptr=address, copy_from_host_async=copy)


class FakeStream:
    """Like `cupy.cuda.Stream`; what it is given is done at once."""

    def __init__(self, devices: "FakeDevices", ptr: int) -> None:
        self._devices, self.ptr = devices, ptr

    def __enter__(self) -> None:
        self._devices.current().append(self)

    def __exit__(self, *_: object) -> None:
        assert self._devices.current().pop() is self

    def synchronize(self) -> None:
        pass

    def record(self, event: HostEvent) -> HostEvent:
        return event

    def wait_event(self, event: HostEvent) -> None:
        assert event.done


class FakeDevices:
    """A driver, cupy and kvikio, each of which can be missing or broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, result: int = 0, count: int = 2) -> None:
        self.threads = 1
        self._patch = monkeypatch
        self.streams = threading.local()
        self.pinned_on: set[int] = set()
        """Devices that were current when memory was page-locked."""
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=lambda: count),
            Device=self.use,
            Stream=lambda non_blocking: FakeStream(self, 99),
            ExternalStream=lambda address, number: FakeStream(self, address),
            Event=lambda block, disable_timing: HostEvent(),
            get_current_stream=lambda: self.current()[-1],
            alloc_pinned_memory=self.pin,
        )
        self.cupy = SimpleNamespace(cuda=self.cuda, empty=self.empty, asarray=np.asarray, take=np.take)
        defaults = SimpleNamespace(
            is_compat_mode_preferred=lambda: True,
            get={"num_threads": self.threads}.__getitem__,
            set=lambda _name, value: setattr(self, "threads", value),
        )
        driver = SimpleNamespace(cuInit=lambda flags: result)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
        monkeypatch.setattr(gpu_device, "_EXTERNAL", {})
        self.set("cupy", self.cupy)
        self.set("kvikio", SimpleNamespace(CuFile=lambda path, flags: HostFile(path)))
        self.set("kvikio.defaults", defaults)
        monkeypatch.delenv("KVIKIO_NTHREADS", raising=False)

    def current(self) -> list["FakeStream"]:
        """Streams of this thread; the last one is current."""
        if not hasattr(self.streams, "entered"):
            self.streams.entered = [FakeStream(self, 0)]
        return self.streams.entered  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Make it this thread's device; 0 is to begin with."""
        before = getattr(self.streams, "device", 0)
        self.streams.device = number
        try:
            yield
        finally:
            self.streams.device = before

    def pin(self, nbytes: int) -> bytearray:
        self.pinned_on.add(getattr(self.streams, "device", 0))
        return bytearray(nbytes)

    def set(self, name: str, module: Any) -> None:
        self._patch.setitem(sys.modules, name, module)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.empty(shape, dtype).view(FakeArray)


def test_loader_on_a_gpu_gives_the_batches_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = FakeDevices(monkeypatch)
    for codec in (None, "zstd"):
        corpus = make(open_tier(tmp_path / f"lake-{codec}", name="lake"), codec=codec)
        host, device = Loader(corpus, 32), Loader(corpus, 32, device="cuda:1")
        for left, right in zip(host, device, strict=True):
            for name, values in left.items():
                assert isinstance(right[name], FakeArray)
                np.testing.assert_array_equal(right[name], values)
    assert fakes.threads == gpu_device.KVIKIO_THREADS
    assert open_device("cuda:1").memory(10).data.ptr % 4096 == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_in_threads_work_on_the_stream_of_their_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    fakes = FakeDevices(monkeypatch)
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    seen = []

    def look(batch: Any) -> Any:
        seen.append((fakes.current()[-1].ptr, threading.get_ident()))
        return batch

    with on_stream("cuda:0", 7):
        batches = list(Loader(corpus, 32, device="cuda:0", transform=look, workers=workers))
        assert fakes.current()[-1].ptr == 7
    assert [ptr for ptr, _ in seen] == [7] * len(batches)
    assert (threading.get_ident() in {thread for _, thread in seen}) == (not workers)
    assert fakes.current()[-1].ptr == 0


def test_memory_is_page_locked_on_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeDevices(monkeypatch)
    array = open_device("cuda:1").page_locked((3, 2), np.dtype(np.int16))  # as by a thread that reads
    assert (array.shape, array.dtype) == ((3, 2), np.int16)
    assert fakes.pinned_on == {1}  # on another one it would take the memory of a context there


def test_page_locked_memory_that_is_not_there_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(nbytes: int) -> bytearray:
        raise RuntimeError("cudaErrorMemoryAllocation: out of memory")

    FakeDevices(monkeypatch).cuda.alloc_pinned_memory = fail
    with pytest.raises(CapacityExceeded, match=r"12 bytes.*page-locked: cudaError.*window_blocks"):
        open_device("cuda:1").page_locked((3, 2), np.dtype(np.int16))


def test_a_gpu_without_room_for_batches_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeDevices(monkeypatch)

    def empty(shape: Any, dtype: Any) -> Any:
        raise MemoryError

    fakes.cupy.empty = empty
    with pytest.raises(CapacityExceeded, match=r"cuda:0 has no room for 2 batches of 12 bytes.*batch_size"):
        open_device("cuda:0").upload([{"x": np.zeros(3, np.int32)}] * 2)


def test_kvikio_keeps_the_threads_its_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeDevices(monkeypatch)
    monkeypatch.setenv("KVIKIO_NTHREADS", "1")
    assert open_device("cuda:0").name == "cuda:0"
    assert fakes.threads == 1


def test_a_full_gpu_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeDevices(monkeypatch)

    def empty(shape: Any, dtype: Any) -> Any:
        raise MemoryError

    fakes.cupy.empty = empty
    with pytest.raises(CapacityExceeded, match=r"cuda:0 has no room for 77 bytes.*window_blocks"):
        open_device("cuda:0").memory(77)


def test_what_a_gpu_needs_and_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevices(monkeypatch, result=100)
    with pytest.raises(UsageError, match=r"driver reports error 100.*device='cpu'"):
        open_device("cuda:0")
    FakeDevices(monkeypatch)
    with pytest.raises(UsageError, match=r"sees 2 GPU\(s\).*'cuda:1'"):
        open_device("cuda:2")
    FakeDevices(monkeypatch, count=0)
    with pytest.raises(UsageError, match=r"sees 0 GPU\(s\).*device='cpu'"):
        open_device("cuda:0")
    for module in ("cupy", "kvikio"):
        FakeDevices(monkeypatch).set(module, None)
        with pytest.raises(UsageError, match=rf"{module} cannot be imported.*corpus-tiering\[gpu\]"):
            open_device("cuda:0")


def test_a_driver_too_old_for_cupy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("CUDA driver version is insufficient")

    FakeDevices(monkeypatch).cuda.runtime.getDeviceCount = fail
    with pytest.raises(UsageError, match="cupy cannot use the GPU: CUDA driver version is insufficient"):
        open_device("cuda:0")


def _has_driver() -> bool:
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL("libcuda.so.1"))
    return False


@pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("name", ["cuda:0", "cuda:99"])
def test_loader_without_a_driver_is_refused_at_once(tmp_path: Path, name: str) -> None:
    loader = Loader(make(open_tier(tmp_path / "lake", name="lake")), 32, device=name)
    with pytest.raises(UsageError, match=f"device = '{name}': no NVIDIA driver here.*device='cpu'"):
        next(iter(loader))
    assert "kvikio" not in sys.modules
    assert "cupy" not in sys.modules
