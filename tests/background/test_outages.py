"""Codecs that cannot run: the others go on, it is said once, and those that are back get their turn."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnfs.background import encoder, outages
from nnfs.background.calibration import SPECIAL, Kind, kind_of, sample
from nnfs.background.encoder import SPECIAL_BIT, ColdEncoder
from nnfs.background.outages import BITS, IN_A_ROW, Outages
from nnfs.background.worth import PER_SECOND, SECTOR, least_saving
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, RUNGS
from nnfs.config import Options
from nnfs.constants import DEFAULT_CHUNK_SIZE, Policy
from nnfs.errors import (
    CodecError,
    CodecUnavailable,
    KillsWorkers,
    ModelMissing,
    NnfsError,
    NoCodecRuns,
    WorkerError,
)
from nnfs.fs import swapping
from nnfs.fs.policy import Rules
from nnfs.store.schema import Block
from nnfs.workers.pool import WorkItem
from nnfs.workers.wire import Op
from tests.background.coding import text
from tests.background.kit import COLD
from tests.background.mountkit import Start, codecs, done, end_of, mounts, write
from tests.harness import nnfs

MODEL, FITTED = b"m" * 64, b"f" * 64
RULES = Rules(Policy.AUTO)
PLAIN = bytes(range(256)) * 512  # is no text, and so is tried with both
BLOCK = Block(1, 0, len(PLAIN), 60_000, 0, 0, 1, 1, b"")
TORCH = CodecUnavailable("codec neural needs torch, which is not installed")


class Cold:
    """Workers that do what a table says of a codec: an error, or a payload of so many bytes."""

    def __init__(self) -> None:
        self.does: dict[int, NnfsError | int] = {NEURAL: 20_000, CM: 30_000}
        self.jobs: list[WorkItem] = []

    async def run(self, job: WorkItem) -> bytes | None:
        self.jobs.append(job)
        if job.op == Op.DECODE:
            return PLAIN
        does = self.does[job.codec]
        if isinstance(does, NnfsError):
            raise does
        return bytes(does)

    def encoded(self, codec: int) -> int:
        return sum((job.op, job.codec) == (Op.ENCODE, codec) for job in self.jobs)


@pytest.fixture
def cold() -> Cold:
    return Cold()


def coder(cold: Cold, wanted: bytes | NnfsError = MODEL, **options: Any) -> ColdEncoder:
    def default() -> bytes:
        if isinstance(wanted, NnfsError):
            raise wanted
        return MODEL

    models = SimpleNamespace(
        wanted=lambda fingerprint: b"" if isinstance(wanted, NnfsError) else fingerprint or wanted, default=default
    )
    return ColdEncoder(cold, models, Options(**{"thaw_limit": math.inf, **options}))  # type: ignore[arg-type]


async def encode(under_test: ColdEncoder, rules: Rules = RULES, *, everything: bool = True) -> int | None:
    """The codec that a chunk gets."""
    found = await under_test.encode(PLAIN, BLOCK, rules, everything=everything)
    return None if found is None else found.codec


@pytest.mark.parametrize("everything", [False, True])
async def test_the_other_codec_goes_on(cold: Cold, everything: bool, caplog: pytest.LogCaptureFixture) -> None:
    for codec, other in ((NEURAL, CM), (CM, NEURAL)):
        cold.does = {codec: TORCH, other: 20_000}
        cold.jobs.clear()
        under_test = coder(cold)
        for _ in range(3):
            assert await encode(under_test, everything=everything) == other
        assert (cold.encoded(codec), cold.encoded(other)) == (1, 3)
        [out] = under_test.outages.report()
        assert out["why"] == str(TORCH)
        assert "tools/run" in str(out["cure"])
        assert (under_test.slow, under_test.fast) == (BITS[codec], 0)
    assert caplog.text.count("is not used to compress") == 2


async def test_when_none_can_run_that_is_said(cold: Cold) -> None:
    cold.does = {
        NEURAL: TORCH, CM: CodecUnavailable("codec cm needs numba, which is not installed"),
        CM_LIGHT: CodecUnavailable("codec cm-light needs numba, which is not installed"),
        PPM: CodecUnavailable("codec ppm needs numba, which is not installed"),
    }  # fmt: skip
    under_test = coder(cold)
    for _ in range(2):
        with pytest.raises(
            NoCodecRuns, match=r"neural needs torch.*cm needs numba.*cm-light needs numba.*ppm needs numba"
        ):
            await encode(under_test)
    under_test = coder(cold, neural=False)
    with pytest.raises(NoCodecRuns, match="cm needs numba"):
        await encode(under_test)
    cold.does[PPM] = 40_000
    assert await encode(coder(cold)) == PPM


@pytest.mark.parametrize("error", [WorkerError("codec 16: MemoryError: weights"), KillsWorkers("killed by signal 9")])
async def test_workers_that_fail_again_and_again(cold: Cold, error: NnfsError) -> None:
    """One chunk may be to blame; several in a row are not."""
    under_test = coder(cold)
    cold.does[NEURAL] = error
    for _ in range(IN_A_ROW - 1):
        with pytest.raises(WorkerError):
            await encode(under_test)
    cold.does[NEURAL] = 20_000
    assert await encode(under_test) == NEURAL
    cold.does[NEURAL] = error
    for _ in range(IN_A_ROW - 1):
        with pytest.raises(WorkerError):
            await encode(under_test)
    assert await encode(under_test) == CM
    assert "memory" in str(under_test.outages.report()[0]["cure"])


async def test_a_chunk_that_a_codec_refuses_is_the_chunks(cold: Cold) -> None:
    under_test = coder(cold)
    cold.does[NEURAL] = CodecError("no chunk of mine")
    for _ in range(2 * IN_A_ROW):
        with pytest.raises(CodecError):
            await encode(under_test)
    assert not under_test.outages.report()


async def test_a_model_that_is_damaged_costs_the_network_alone(cold: Cold) -> None:
    under_test = coder(cold, ModelMissing("default.safetensors is no model file"))
    assert await encode(under_test) == CM
    assert not cold.encoded(NEURAL)
    [out] = under_test.outages.report()
    assert "is no model file" in str(out["why"])
    assert "nnfs model add" in str(out["cure"])


async def test_a_fitted_model_that_is_lost_is_out_alone(cold: Cold) -> None:
    under_test = coder(cold)
    cold.does[NEURAL] = ModelMissing("no model ffff")
    assert await encode(under_test, Rules(Policy.COLD, FITTED)) == CM
    cold.does[NEURAL] = 20_000
    assert await encode(under_test) == NEURAL
    assert await encode(under_test, Rules(Policy.COLD, FITTED)) == CM


async def test_measuring_puts_a_codec_out_too(cold: Cold) -> None:
    cold.does[NEURAL] = TORCH
    under_test = coder(cold, thaw_limit=100.0)
    assert await encode(under_test, everything=False) == CM
    assert [one["codec"] for one in under_test.outages.report()] == ["neural"]


async def test_what_nobody_can_prove_is_not_made(cold: Cold) -> None:
    """The reference lacks what the codec needs."""
    under_test = coder(cold)
    best = await under_test.encode(PLAIN, BLOCK, RULES, everything=True)
    assert best is not None

    async def run(job: WorkItem) -> bytes:
        raise CodecUnavailable("codec neural needs torch, which is not installed")

    cold.run = run  # type: ignore[method-assign]
    with pytest.raises(CodecUnavailable):
        await under_test.prove(BLOCK, best)
    del cold.run
    assert await encode(under_test) == CM


async def test_a_codec_is_back(cold: Cold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were settled without it are looked at again once, and not at every pass."""
    settings = 0x1234500 | BITS[NEURAL]
    cold.does[NEURAL] = TORCH
    under_test = coder(cold)
    for _ in range(2):
        await under_test.revive(settings)
        assert (under_test.fast, cold.encoded(NEURAL)) == (0, 1)
    assert not swapping.has_changed(settings, 0x1234500, under_test.fast)
    cold.does[NEURAL] = WorkerError("just now")
    under_test = coder(cold)
    await under_test.revive(settings)  # not known: no pass fails for it
    assert under_test.fast == 0
    cold.does[NEURAL] = 500
    for _ in range(2):
        before = cold.encoded(NEURAL)
        await under_test.revive(settings)
        assert under_test.fast == BITS[NEURAL]
    assert cold.encoded(NEURAL) == before
    assert swapping.has_changed(settings, 0x1234500, under_test.fast)
    assert not swapping.has_changed(settings & ~BITS[NEURAL], 0x1234500, under_test.fast)
    assert coder(cold, neural=False).fast == 0


async def test_models_that_are_shipped_anew(cold: Cold, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(outages, "PRESETS", str(tmp_path))
    under_test = Outages()
    assert under_test.failed(NEURAL, MODEL, ModelMissing("damaged"))
    under_test.clear_if_shipped_anew()
    assert under_test.has(NEURAL, MODEL)
    (tmp_path / "default.safetensors").write_bytes(b"whole")
    under_test.clear_if_shipped_anew()
    assert not under_test.has(NEURAL, MODEL)


# -- what is worth it


@pytest.mark.parametrize(
    ("plain", "seconds", "least"),
    [(0, None, SECTOR), (4096, None, SECTOR), (1 << 17, None, SECTOR), (1 << 20, None, 4 * PER_SECOND),
     (1 << 17, 13.0, 13 * PER_SECOND / 8), (1 << 17, 0.01, SECTOR)],
)  # fmt: skip
def test_the_least_saving(plain: int, seconds: float | None, least: float) -> None:
    assert least_saving(plain, seconds) == pytest.approx(least)


@pytest.mark.parametrize(("before", "after", "wanted"), [
    (19, 17, None), (304, 17, None), (700, 200, None), (700, 188, NEURAL),
    (60_000, 59_800, None), (60_000, 20_000, NEURAL),
])  # fmt: skip
async def test_less_than_a_sector_is_left_alone(cold: Cold, before: int, after: int, wanted: int | None) -> None:
    """This holds with --all, too."""
    cold.does = {NEURAL: after, CM: after}
    block = Block(1, 0, len(PLAIN), before, 0, 0, 1, 1, b"")
    found = await coder(cold).encode(PLAIN, block, RULES, everything=True)
    assert (found.codec if found else None) == wanted
    assert coder(cold).may_gain(block) == (before > SECTOR)


async def test_a_slow_codec_must_save_more(cold: Cold) -> None:
    under_test = coder(cold)
    under_test._speeds[NEURAL, Kind.TEXT] = 40.0, 0.0, 0.0
    under_test._speeds[CM, Kind.TEXT] = 30.0, 0.0, 0.0
    block = Block(1, 0, len(PLAIN), 9_000, 0, 0, 1, 1, b"")
    cold.does = {NEURAL: 4_000, CM: 8_000}
    assert await under_test.encode(PLAIN, block, RULES, everything=True) is None
    assert not under_test.may_gain(Block(1, 0, len(PLAIN), 3_500, 0, 0, 1, 1, b""))
    cold.does = {NEURAL: 3_000, CM: 8_000}
    assert await under_test.encode(PLAIN, block, RULES, everything=True) is not None


# -- kinds of content


@pytest.mark.parametrize("kind", Kind)
def test_samples_are_of_their_kind(kind: Kind) -> None:
    from nnfs.codec.cm import ContextMixing

    piece = sample(kind)[: DEFAULT_CHUNK_SIZE // 4]  # quick
    payload = ContextMixing().encode(piece)
    assert payload is not None
    assert kind_of(CM, payload) is kind
    assert kind_of(NEURAL, payload) is Kind.TEXT


async def test_the_limit_holds_for_the_kind(cold: Cold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound takes longer to read back than text."""
    under_test = coder(cold, thaw_limit=8.0, neural=False)
    seconds = {Kind.TEXT: 5.0, Kind.SAMPLES: 10.0, Kind.RECORDS: 5.0, Kind.X86: 5.0}

    async def measure(codec: int, kind: Kind) -> float:
        return seconds[kind]

    async def run(job: WorkItem) -> bytes:
        return first[0] + bytes(30_000)

    monkeypatch.setattr(under_test, "_measure", measure)
    cold.run = run  # type: ignore[method-assign]
    first = [b"\2"]
    both = swapping.bit(CM) | swapping.bit(CM_LIGHT)
    assert await encode(under_test, everything=False) == CM_LIGHT
    assert await encode(under_test, everything=True) == CM
    assert (under_test.fast, under_test.slow) == (both, SPECIAL_BIT)
    for first[0] in (b"\0", b"\1", b"\x10"):
        assert await encode(under_test, everything=False) == CM
    assert (under_test.fast, under_test.slow) == (both, SPECIAL_BIT)  # one of them is slow
    assert under_test.speeds() == {"cm": 5.0, "cm-light": 5.0, "cm samples": 10.0, "cm records": 5.0, "cm x86": 5.0}
    monkeypatch.setattr(encoder, "time", SimpleNamespace(monotonic=lambda: 1e9))
    seconds[Kind.SAMPLES] = 7.0
    assert await under_test.fast_enough(CM, Kind.SAMPLES)
    assert (under_test.fast, under_test.slow) == (both | SPECIAL_BIT, 0)
    assert set(SPECIAL) == set(Kind) - {Kind.TEXT}


def test_bits_of_the_settings_are_apart() -> None:
    bits = [*map(swapping.bit, RUNGS), SPECIAL_BIT, *BITS.values()]
    assert sum(bits) == swapping.SLOW & sum(bits)
    assert len(set(bits)) == len(bits) == sum(bits).bit_count()


async def test_marks_made_with_another_ladder_are_void(cold: Cold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung is kept as its number, so an older ladder's second rung is not taken for today's."""
    before = coder(cold).digest()
    assert not swapping.has_changed(before, coder(cold).digest(), 0)
    monkeypatch.setattr(encoder, "RUNGS", (PPM, CM, NEURAL))
    assert swapping.has_changed(before, coder(cold).digest(), 0)


# -- on a mount


@mounts
@pytest.mark.parametrize("how", ["missing", "import", "bug", "self-test", "model", "memory", "die"])
def test_cm_goes_on_without_the_network(start: Start, how: str) -> None:
    mount = start(mode="none", options=(*COLD, "compact_threads=1"), broken="16", how=how)
    mount.expect_log("is not used to compress|Traceback|Error|worker .* was killed|stays as it is|codec 16")
    for n in range(20):
        write(mount.path / f"f{n}", text(n))
    end_of(mount, mount.ask("compact", ino=1)["job"])
    done(mount, "compact", mount.path)  # what failed before it was known is done now
    assert codecs(mount, mount.path) == {"cm": 20}
    [out] = mount.ask("status")["codecs_out"]
    assert out["codec"] == "neural"
    assert out["cure"]
    assert mount.log().count("is not used to compress") == 1
    human = nnfs("status", str(mount.path)).stdout
    assert "codec neural" in human
    assert out["cure"] in human
    mount.set(broken="")
    mount.remount()
    mount.deadline()
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path) == {"neural": 20}  # it is back, and has a try at all of it
    assert done(mount, "compact", mount.path)["total_chunks"] == 0
    assert not mount.ask("status")["codecs_out"]


@mounts
@pytest.mark.parametrize("all_of_it", [False, True])
def test_without_any_codec_a_command_says_so(start: Start, all_of_it: bool) -> None:
    mount = start(mode="none", options=COLD, broken="+".join(map(str, RUNGS)), how="missing")
    mount.expect_log("is not used to compress|no codec can run")
    for n in range(20):
        write(mount.path / f"f{n}", text(n))
    for dry_run in (False, True):
        job = end_of(mount, mount.ask("compact", ino=1, all=all_of_it, dry_run=dry_run)["job"])
        assert (job["state"], job["exit"]) == ("failed", NoCodecRuns.exit_code)
        assert "no codec can run here: codec neural" in job["error"]
    assert codecs(mount, mount.path) == {"zstd": 20}
    mount.set(broken="17")
    mount.remount()
    mount.deadline()
    done(mount, "compact", mount.path, all=all_of_it)
    assert codecs(mount, mount.path) == {"neural": 20}


@mounts
def test_thaw_brings_back_what_can_be_decoded(start: Start) -> None:
    """Many blocks of a codec that cannot run do not keep those of the other one from coming back."""
    mount = start(mode="none", options=(*COLD, "thawed=0", "cache=0"))
    (mount.path / "a").mkdir()
    for n in range(20):
        write(mount.path / "a" / f"f{n}", text(n))
    done(mount, "compact", mount.path)
    mount.set(broken="16", how="missing")
    mount.remount()
    mount.deadline()
    mount.expect_log("needs torch|is not used to compress")
    for n in range(5):
        write(mount.path / f"z{n}", text(100 + n))
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path) == {"neural": 20, "cm": 5}
    end_of(mount, mount.ask("thaw", ino=1)["job"])
    assert codecs(mount, mount.path) == {"neural": 20, "zstd": 5}
    job = end_of(mount, mount.ask("scrub", deep=True)["job"])
    assert "needs torch" in job["error"]
    assert job["done_chunks"] == 25
