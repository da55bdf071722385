"""The neural codec on a GPU, as the host runs its kernels: the payloads of the CPU, in whatever order items run."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from functools import cache
from unittest import mock

import numpy as np
import pytest

from nnfs.codec import bitstream, devicechoice, neural, neuraldevice, rans
from nnfs.codec.base import NEURAL
from nnfs.codec.neural import Neural
from nnfs.codec.neuraldevice import Coding, DeviceCoder
from nnfs.errors import BuildFailed, CodecError
from nnfs.kernels import compiled, driver, hosted
from nnfs.kernels.driver import Device, Driver
from nnfs.mixer.state import MixState
from nnfs.model import selftest
from nnfs.model.dictionary import Dictionary
from nnfs.model.engines import open_model
from nnfs.model.weights import Weights
from nnfs.workers.catalogue import Catalogue
from tests.model.golden import sample

CHUNKS = [  # plain, lanes: of several lengths, more rows than a block has, last lanes that end early
    (sample(700, 1), 3),
    (sample(901, 4), 8),
    (b"abcabcabd" * 40, 8),
    (sample(300, 2), 1),
    (bytes(400), 5),
    (bytes(range(256)) * 2, 7),
    (b"x" * 33, 2),
    (random.Random(1).randbytes(200), 4),  # does not get smaller
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("hosted"))


@pytest.fixture(params=["tensor", "dp4a"])
def path(request: pytest.FixtureRequest, folder: str) -> str:
    try:
        return hosted.library(folder, tensor=request.param == "tensor")
    except BuildFailed as why:
        if "no C++ compiler" in str(why):
            pytest.skip(str(why))
        raise


@pytest.fixture
def gpu(path: str) -> Iterator[Device]:
    """The host as a GPU; nothing that was allocated there stays."""
    library = ctypes.CDLL(path)
    library.nnfs_host_order(hosted.FORWARDS)
    device = Device(Driver(path))
    yield device
    assert library.nnfs_host_used() == 0


def order(path: str, chosen: int) -> None:
    ctypes.CDLL(path).nnfs_host_order(chosen)


def wanted(
    weights: Weights, chunks: list[tuple[bytes, int]], states: int, dictionary: Dictionary | None = None
) -> list[bytes]:
    """Return the streams of the CPU."""
    model, made = open_model(weights), []
    for plain, lanes in chunks:
        (path,) = neural.network_paths(model, [plain], [lanes], dictionary=dictionary)
        mix = MixState(1, len(plain), lanes, dictionary=dictionary)
        mix.start(0, plain, lanes, values=weights.start)
        made.append(bitstream.encode(mix, 0, path, states))
    return made


@cache
def streams(states: int) -> list[bytes]:
    return wanted(selftest.weights(), CHUNKS, states)


def decoded(coder: DeviceCoder, made: list[bytes], chunks: list[tuple[bytes, int]], states: int) -> list[bytes]:
    """Decode streams, which end as they were begun."""
    codings = []
    for stream, (plain, lanes) in zip(made, chunks, strict=True):
        values, words, _ = rans.start(stream, states)
        codings.append(Coding(len(plain), lanes, values, words))
    found = coder.decode(codings)
    for (values, _, cursor), coding in zip(found, codings, strict=True):
        rans.finish(values, coding.words, np.array([cursor]))
    return [plain for _, plain, _ in found]


@pytest.mark.parametrize("chosen", [hosted.FORWARDS, hosted.BACKWARDS, hosted.MIXED])
def test_streams_are_those_of_the_cpu(gpu: Device, path: str, chosen: int) -> None:
    order(path, chosen)
    coder = DeviceCoder(gpu, selftest.weights(), b"")
    assert coder.launches.rows == [8, 16]  # what fits the shared memory that the host says it has
    made = coder.encode(CHUNKS, 1)
    assert made[:-1] == streams(1)[:-1]
    assert made[-1] in (None, streams(1)[-1])
    assert decoded(coder, streams(1), CHUNKS, 1) == [plain for plain, _ in CHUNKS]
    coder.free()


def test_more_states_and_other_rows(gpu: Device) -> None:
    coder = DeviceCoder(gpu, selftest.weights(), b"")
    chunks, want = CHUNKS[1:3], wanted(selftest.weights(), CHUNKS[1:3], 4)
    for rows in (8, 16):
        coder.rows = rows
        assert coder.encode(chunks, 4) == want
        assert decoded(coder, want, chunks, 4) == [plain for plain, _ in chunks]
    with pytest.raises(CodecError, match="a chunk of 17 lanes"):
        coder.launches.rows_for(17, 17)
    coder.free()


def test_thirty_two_lanes(gpu: Device) -> None:
    """A GPU with more shared memory has blocks of 32 rows."""
    gpu.shared = 1 << 18
    chunks = [(sample(1000, 9), 32), (sample(500, 8), 8)]
    with mock.patch("nnfs.kernels.driver.Kernel.allow"):
        coder = DeviceCoder(gpu, selftest.weights(), b"")
    assert coder.most_lanes == 32
    want = wanted(selftest.weights(), chunks, 16)[:1] + wanted(selftest.weights(), chunks, 1)[1:]
    assert coder.encode(chunks[:1], 16) == want[:1]
    assert decoded(coder, want[:1], chunks[:1], 16) == [chunks[0][0]]
    coder.rows = 32
    assert coder.encode(chunks[1:], 1) == want[1:]
    coder.free()


def test_a_dictionary(gpu: Device) -> None:
    dictionary = Dictionary(sample(3000, 1))
    coder = DeviceCoder(gpu, selftest.weights(), b"", dictionary)
    chunks = [(sample(700, 1), 3), (sample(300, 2), 1)]
    want = wanted(selftest.weights(), chunks, 1, dictionary)
    assert coder.encode(chunks, 1) == want
    assert decoded(coder, want, chunks, 1) == [plain for plain, _ in chunks]
    coder.free()


def test_memory_decides_how_many_chunks_go_at_once(gpu: Device, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ctypes.CDLL(path)
    coder = DeviceCoder(gpu, selftest.weights(), b"")
    room = int(1.3 * max(coder.bytes_of(len(plain), lanes) for plain, lanes in CHUNKS) / neuraldevice.SHARE)
    monkeypatch.setenv("NNFS_HOST_MEMORY", str(library.nnfs_host_used() + room))
    before = library.nnfs_host_launches()
    assert coder.encode(CHUNKS[:4], 1) == streams(1)[:4]
    assert library.nnfs_host_launches() - before > 4  # two for each batch
    monkeypatch.setenv("NNFS_HOST_MEMORY", str(library.nnfs_host_used() + 1000))
    with pytest.raises(MemoryError):
        coder.encode(CHUNKS[:1], 1)
    coder.free()


def test_damage_does_not_leave_its_memory(gpu: Device) -> None:
    coder, rng = DeviceCoder(gpu, selftest.weights(), b""), random.Random(5)
    codings = []
    for _ in range(8):
        values = np.array([rng.getrandbits(47)], np.int64)
        codings.append(
            Coding(rng.randrange(8, 90), 8, values, np.frombuffer(rng.randbytes(rng.randrange(60)), np.uint8))
        )
    assert [len(plain) for _, plain, _ in coder.decode(codings)] == [coding.size for coding in codings]
    coder.free()


# ---------------------------------------------------------------------------------------------- the choice of kernels


def test_the_digest_is_that_of_the_cpu(gpu: Device) -> None:
    coder = DeviceCoder(gpu, selftest.weights(), b"")
    assert devicechoice.digest(coder) == devicechoice.DIGEST
    coder.free()

    class Cpu:
        """The CPU in a coder's place."""

        def encode(self, chunks: list[tuple[bytes, int]], states: int) -> list[bytes]:
            self.plains = [plain for plain, _ in chunks]
            return wanted(selftest.weights(), chunks, states)

        def decode(self, codings: list[Coding]) -> list[tuple[None, bytes, int]]:
            return [(None, plain, 0) for plain in self.plains]

    assert devicechoice.digest(Cpu()) == devicechoice.DIGEST  # type: ignore[arg-type]


@pytest.fixture
def chosen(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A machine whose GPU is the host."""
    found = Driver(path)
    monkeypatch.setattr(driver, "driver", lambda: found)
    monkeypatch.setattr(compiled, "cubin", lambda version, *, tensor: b"")
    devicechoice.tested.cache_clear()
    yield found
    devicechoice.tested.cache_clear()


@pytest.mark.usefixtures("chosen")
def test_the_codec_uses_the_gpu_for_what_it_can_hold() -> None:
    weights = selftest.weights()
    there, here = Neural(weights, device="auto"), Neural(weights)
    assert (there.device, here.device) == ("cuda", "cpu")
    assert there.gpu
    assert not here.gpu
    plains = [sample(900, 1), b"", sample(20000, 2)[:200], random.Random(2).randbytes(300), b"\xe8\x05\0\0\0" * 60]
    payloads = here.encode_many(plains)
    assert there.encode_many(plains) == payloads
    codings = [(payload or b"", len(plain)) for payload, plain in zip(payloads, plains, strict=True)]
    codings.append((b"\x1f" + b"abc" * 30, 64))  # 32 lanes: more than a block here has rows, so the CPU takes it
    codings.append((b"\x07" + b"abc" * 30, 64))
    results = list(map(str, there.decode_many(codings)))
    assert results == list(map(str, here.decode_many(codings)))
    assert there.gpu.most_lanes < 32


@pytest.mark.usefixtures("chosen")
def test_a_gpu_that_computes_something_else_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devicechoice, "DIGEST", "another")
    assert devicechoice.opened(selftest.weights(), "cuda:0", None) is None
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert "they do not compute what they should" in caplog.text
    assert "torch runs the network" in caplog.text


@pytest.mark.usefixtures("chosen")
def test_a_machine_without_a_compiler_leaves_it_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(version: int, *, tensor: bool) -> bytes:
        raise BuildFailed("NVRTC is missing")

    monkeypatch.setattr(compiled, "cubin", missing)
    assert devicechoice.opened(selftest.weights(), "auto", None) is None
    assert "NVRTC is missing" in caplog.text
    assert devicechoice.opened(selftest.weights(), "cpu", None) is None


def test_no_gpu_no_word(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    devicechoice.tested.cache_clear()
    monkeypatch.setattr(driver, "driver", lambda: None)
    assert devicechoice.opened(selftest.weights(), "auto", None) is None
    assert not caplog.records
    devicechoice.tested.cache_clear()


@pytest.mark.usefixtures("chosen")
def test_the_shipped_model() -> None:
    catalogue = Catalogue("auto")
    codec = catalogue.find(NEURAL, bytes(64))
    assert isinstance(codec, Neural)
    assert codec.gpu
    plain = sample(300, 3)
    (payload,) = codec.encode_many([plain])
    with mock.patch.object(codec, "gpu", None):
        assert codec.encode_many([plain]) == [payload]
    assert codec.decode_many([(payload or b"", 300)]) == [plain]
