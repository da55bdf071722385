"""tools/bench_methods: the programs, the pieces, the rows and the picture."""

from __future__ import annotations

import itertools
import os
import re
import struct
import subprocess
import sys
import wave
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.harness import REPO

sys.path.insert(0, str(REPO / "tools" / "lib"))

from bench import methods, picture, piecewise, programs
from bench.corpus import Corpus, NoData
from bench.table import Answer, Case, Line, Missing, Result, Setting

PROSE = (REPO / "tests/background/prose.txt").read_bytes()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A small corpus with the kinds that pieces are taken from."""
    for folder in ("enwik", "img", "audio/speechEmotion"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / methods.SOURCE).write_bytes((PROSE * (40_000 // len(PROSE) + 1))[:40_000])
    y, x = np.mgrid[:64, :96]
    colours = np.stack([x + y, 2 * x, 255 - y], -1).astype(np.uint8)
    (tmp_path / "img/1.ppm").write_bytes(b"P6\n96 64\n255\n" + colours.tobytes())
    tone = (3000 * np.sin(np.arange(20_000) / 9)).astype("<i2").tobytes()
    for name in ("speechEmotion/1.wav", "recording1.wav", "recording2.wav"):
        with wave.open(str(tmp_path / "audio" / name), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(piecewise.RATE)
            sound.writeframes(tone)
    return Corpus(tmp_path)


# ------------------------------------------------------------------------------------------------------------- programs


def test_the_frame_of_a_png_is_all_but_its_content() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    content = zlib.compress(bytes(33))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 1, 8, 0, 0, 0, 0))
    whole = head + chunk(b"IDAT", content[:5]) + chunk(b"IDAT", content[5:]) + chunk(b"IEND", b"")
    assert programs.png_frame(whole) == len(whole) - len(content) == 57 + 12  # one more IDAT than most have


def test_the_frame_of_a_flac_file_ends_with_its_last_block_of_metadata() -> None:
    whole = b"fLaC" + b"\x00\x00\x00\x22" + bytes(34) + b"\x84\x00\x00\x28" + bytes(40) + b"\xff\xf8sound"
    assert programs.flac_frame(whole) == 4 + 38 + 44 == 86


def test_a_program_that_is_not_there_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Missing, match=r"zopflipng is not installed \(apt-get install zopfli\)"):
        programs.run(["zopflipng"])


# --------------------------------------------------------------------------------------------------------------- pieces


def test_pieces_of_all_kinds_have_2048_bytes(corpus: Corpus) -> None:
    for kind in piecewise.KINDS.values():
        taken = list(kind.takes(corpus, 5, False))
        assert [len(plain) for plain, _ in taken] == [piecewise.PIECE] * 5
        assert taken == list(kind.takes(corpus, 5, False))  # the same ones each time


def test_whole_files_are_as_many_as_are_asked_for(corpus: Corpus) -> None:
    assert [len(plain) for plain, _ in piecewise.text(corpus, 5000, True)] == [5000]
    assert [len(plain) for plain, _ in piecewise.patches(corpus, 6000, True)] == [96 * 64]
    assert [len(plain) for plain, _ in piecewise.speech(corpus, 50_000, True)] == [40_000] * 2


def test_grey_is_what_the_eye_sees(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 2\n255\n" + bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255]))
    assert piecewise.grey(tmp_path / "a.ppm").tolist() == [[76, 150], [29, 255]]
    (tmp_path / "b.ppm").write_bytes(b"P6\n2 2\n255\n")
    with pytest.raises(NoData, match=r"b\.ppm is no PPM picture"):
        piecewise.grey(tmp_path / "b.ppm")


def test_sound_that_is_no_speech_of_16_bits_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
    with pytest.raises(NoData, match="not one channel"):
        piecewise.samples(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", piecewise.KINDS)
def test_pieces_are_measured(kind: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that are missing leave their cells empty."""
    (tmp_path / "work").mkdir()
    task = {"kind": kind, "whole": False, "count": 2, "corpus": str(corpus.folder), "work": str(tmp_path / "work")}
    (line,) = piecewise.measured(task)
    values = line.values
    assert values["plain"] == 2 * piecewise.PIECE / 1000
    assert 0 < values["smallest"] <= min(values["cm"], values["neural"]) <= 100  # type: ignore[type-var, operator]
    model = piecewise.model_bytes("neural")
    assert values["with_model"] == pytest.approx(values["smallest"] + 100 * model / 4096)  # type: ignore[operator]
    assert values["on_gigabyte"] == pytest.approx(values["smallest"] + model / 1e7)  # type: ignore[operator]
    if values["own"] is not None:
        assert values["own_content"] < values["own"]  # type: ignore[operator]
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(piecewise, "ours", lambda _: {"cm": [1], "neural": [2]})
    (line,) = piecewise.measured(task)
    assert line.values["gzip"] is line.values["lzma2"] is line.values["own"] is None


# -------------------------------------------------------------------------------------------------------------- methods


def test_every_method_has_a_way_to_be_measured(corpus: Corpus, tmp_path: Path) -> None:
    cases = methods.cases(Setting(tmp_path, corpus.folder, is_quick=True))
    assert len({case.labels for case in cases}) == len(cases) == len(methods.METHODS)
    assert {case.task["how"] for case in cases} == set(methods.HOW)


def small(corpus: Corpus, size: int = 3000) -> dict[str, object]:
    piece = [str(corpus.path(methods.SOURCE)), 0, size]
    return {"pieces": [piece], "device": "cpu", "threads": 1, "work": str(corpus.folder), "argument": None}


def test_the_network_alone_costs_more_than_with_the_mixer_and_less_than_nothing_at_all(corpus: Corpus) -> None:
    (alone,), (both,) = methods.network_alone(small(corpus)), methods.by_codec(small(corpus))
    assert both.values["stored"] < alone.values["stored"] < 3000  # type: ignore[operator]
    assert alone.values["decode"] is None


def test_lanes_are_the_payload_s_own(corpus: Corpus) -> None:
    found = [next(methods.in_lanes({**small(corpus), "argument": lanes})).values["stored"] for lanes in (1, 32)]
    assert found[0] < found[1]  # type: ignore[operator]


def test_programs_give_back_what_they_were_given(corpus: Corpus) -> None:
    for how in ("program", "tar"):
        task = {**small(corpus), "how": how, "argument": ["gzip", "-9n"]}
        (line,) = methods.HOW[how](task)
        assert 0 < line.values["stored"] < 3000  # type: ignore[operator]
        assert line.values["bits"] == pytest.approx(8 * line.values["stored"] / 3000)  # type: ignore[operator]


# -------------------------------------------------------------------------------------------------------------- picture


def result(name: str, seconds: float | None, bits: float) -> Result:
    line = Line((), {"both": seconds, "encode": 0.5, "bits": bits})
    return Result(Case((name, ""), {}), Answer((line,)))


def test_a_picture_shows_every_method_and_no_label_covers_another() -> None:
    results = [result(f"nnfs <{k}>", 10 ** (k - 3), 2 + 0.01 * k) for k in range(20)]
    results += [result("alone", None, 5), Result(Case(("late", ""), {}), Answer(problem="late"))]
    drawn = picture.drawn(results)
    root = ET.fromstring(drawn)
    names = {f"nnfs <{k}>" for k in range(20)} | {"alone"}
    space = "{http://www.w3.org/2000/svg}"
    labels = [one for one in root.iter(f"{space}text") if one.text in names]
    assert {one.text for one in labels} == names
    heights = sorted(float(one.attrib["y"]) for one in labels)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= picture.LINE - 0.2
    assert 0 < heights[0] <= heights[-1] <= picture.HEIGHT
    assert len(list(root.iter(f"{space}circle"))) == 21


def test_nothing_measured_is_no_picture() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        picture.drawn([Result(Case(("late", ""), {}), Answer(problem="late"))])


def test_the_command_explains_itself() -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([REPO / "tools/bench_methods", "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  methods +Methods on one text$", done.stdout, re.MULTILINE)
