from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")

from nnfs.train import buildcorpus, fetch, filekinds, unpack  # noqa: E402
from nnfs.train.__main__ import main  # noqa: E402
from nnfs.train.corpus import CHUNK, Corpus  # noqa: E402
from nnfs.train.languages import language  # noqa: E402
from nnfs.train.shingles import Seen, shingles  # noqa: E402

WORDS = "the house stands on a hill and from it you can see that the river is wide with boats for all".split()


def prose(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    text = " ".join(rng.choice(WORDS) + str(rng.randrange(10_000)) * (rng.random() < 0.3) for _ in range(size // 4))
    return text.encode()[:size]


def write(root: Path, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def built(tmp_path: Path, *roots: Path, **more: object) -> Corpus:
    out = str(tmp_path / "corpus")
    buildcorpus.build(buildcorpus.Options(out=out, roots=[str(root) for root in roots], **more))  # type: ignore[arg-type]
    return Corpus(out)


def files(corpus: Corpus, kind: str) -> list[bytes]:
    return [corpus.file(entry) for entry in corpus.index if corpus.kinds[entry["kind"]] == kind]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


# ------------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a/main.go", b"package main\n" * 400, "go"),
        ("a/lib.rs", b"fn main() {}\n" * 400, "rust"),
        ("a/man1/ls.1", b".TH LS 1\n" + prose(1, 5000), "man"),
        (
            "de/man1/ls.1",
            ".TH LS 1\nDie Datei wird nicht mit der Option und auf dem Weg gelesen, wenn sie für ".encode() * 9,
            "lang-de",
        ),
        ("index.html", "<html><p>Файл не может быть прочитан, если он открыт".encode() * 50, "lang-ru"),
        ("zh.md", "该命令显示文件的内容,如果没有给出文件名".encode() * 50, "lang-zh"),
        ("README", prose(2, 5000), "mail-md"),
        ("tale.txt", b"He said that she had seen his brother, who was with her when it was too late. " * 60, "novel"),
        ("page.txt", b"The house is a [[building|big building]] used by [[People]] for the [[Night]].\n" * 60, "wiki"),
        ("talks.tab", b"1\t" + prose(5, 5000), "prose"),
        ("uk.txt", "Це файл, який не існує, і його неможливо відкрити".encode() * 50, "lang-uk"),
        (".gitignore", b"*.o\n*.so\nbuild/\n" * 8, "small"),
        ("package.json", b'{"name": "left", "version": "1.0.0"}\n' * 4, "small"),
        ("big.json", b'{"name": "left", "version": "1.0.0"}\n' * 400, "json"),
        ("book.xml", b'<?xml version="1.0"?><book xmlns="http://docbook.org/ns/docbook">' + prose(3, 5000), "markup"),
        ("ls", b"\x7fELF\2\1\1" + bytes(100), "elf"),
        ("A.class", b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(100), "class"),
        ("x.wasm", b"\0asm\1\0\0\0" + bytes(100), "code-other"),
        ("x.wav", b"RIFF\0\0\0\0WAVEfmt " + bytes(100), "audio"),
        ("x.bin", bytes(range(16)) * 20, "binary"),
        ("x.bin", random.Random(1).randbytes(5000), None),
        ("icon.png", b"\x89PNG", None),
    ],
)
def test_kinds(name: str, head: bytes, kind: str | None) -> None:
    assert filekinds.classify(name, len(head), head[: filekinds.HEAD]) == kind


@pytest.mark.parametrize(
    "path",
    [
        "silesia/dickens",
        "deps/lua/src/lvm.c",
        "usr/share/lua5.4/x.lua",
        "site-packages/lxml/etree.so",
        "lxml-5.3.0.tar.gz",
        "node_modules/express/lib/router.js",
        "usr/share/gocode/src/github.com/gin-gonic/gin/gin.go",
        "usr/bin/jq",
        "texts/kjv.txt",
        "English/Hardy_Tess_1891.txt",
        "English/Dickens_Bleak_1853.txt",
        "words/literature/shakespeare_sonnets.json",
        "img/kodim03.png",
        "usr/share/java/commons-lang3-3.12.0.jar",
    ],
)
def test_what_benchmarks_are_made_of_is_left_out(path: str) -> None:
    assert filekinds.excluded(path)


@pytest.mark.parametrize(
    "path",
    ["usr/include/lualatex/x.h", "src/expression.c", "docs/batch.md", "lib/jquery.js", "gin/x", "a/evaluate.lua"],
)
def test_like_names_are_not_excluded(path: str) -> None:
    assert not filekinds.excluded(path)


def test_the_bible_is_known_by_its_beginning() -> None:
    assert filekinds.excluded("x.txt", b"1:1 In the beginning God created the heaven and the earth.")


def test_every_table_speaks_of_known_kinds() -> None:
    assert set(filekinds.SUFFIX_KIND.values()) <= set(filekinds.KINDS)
    assert sum(kind.weight for kind in filekinds.KINDS.values()) == pytest.approx(100)


def test_languages() -> None:
    assert language(prose(1, 2000)) == "en"
    assert language("Le fichier est dans le dossier et vous avez une erreur pour les données".encode() * 3) == "fr"
    assert language("Це файл, який не існує, і його неможливо відкрити".encode() * 9) == "uk"
    assert language("Гэты файл не існуе, і яго немагчыма адкрыць, ён выдалены ўчора".encode() * 9) == "other"
    assert language("これはファイルです".encode() * 9) == "ja"
    assert language(b"") is None
    assert language(b"alpha 1 beta 2 gamma 3 delta 4 " * 90) is None


# ------------------------------------------------------------------------------------------------------------ shingles


def test_shingles_are_chosen_by_content() -> None:
    data = prose(1, 20_000)
    whole, shifted = shingles(data), shingles(b"a new start " + data)
    assert len(whole) > 300
    assert set(whole.tolist()) <= set(shifted.tolist())
    assert len(shingles(bytes(5000))) == len(shingles(b"-" * 5000)) == len(shingles(b"short")) == 0


def test_seen() -> None:
    seen = Seen(20)
    seen.add(shingles(prose(1, 20_000)))
    assert seen.share(shingles(prose(1, 20_000))) == 1
    assert seen.share(shingles(prose(2, 20_000))) < 0.02
    assert seen.share(shingles(b"")) == 0


# ----------------------------------------------------------------------------------------------------------- unpacking


def test_archives_within_archives(raw: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("deep/a.txt", prose(1, 500))
    with tarfile.open(raw / "thing-1.2.tar.gz", "w:gz") as tar:
        for name, data in (("./x/b.jar", inner.getvalue()), ("x/c.txt.gz", gzip.compress(prose(2, 500)))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (unit,) = unpack.units(str(raw))
    assert unit.source == "thing"
    assert {file.name: file.load(1000) for file in unpack.listing(unit)} == {
        "x/b.jar/deep/a.txt": prose(1, 500),
        "x/c.txt": prose(2, 500),
    }


def test_a_damaged_archive_gives_what_can_be_read(raw: Path) -> None:
    write(raw, "a.tar.gz", b"no archive at all")
    write(raw, "b.zip", b"PK\3\4 neither")
    write(raw, "c.deb", b"!<arch>\n")
    assert [unpack.listing(unit) for unit in unpack.units(str(raw))] == [[], [], []]


def test_names_without_versions() -> None:
    assert unpack.source_of("/x/linux-source-6.1_6.1.192-2_all.deb") == "linux-source"
    assert unpack.source_of("redis_7.0.15.orig.tar.gz") == "redis"
    assert unpack.source_of("d3-7.9.2.tgz") == "d3"


# ------------------------------------------------------------------------------------------------------------ building


def test_a_corpus(tmp_path: Path, raw: Path) -> None:
    for number in range(30):
        write(raw, f"texts/{number}.txt", prose(number, 3000 + 100 * number))
    write(raw, "texts/long.txt", prose(99, 3 * CHUNK + 5000))
    write(raw, "conf/a.json", b'{"one": 1, "two": [1, 2, 3], "three": "and so on and on and on and on"}')
    corpus = built(tmp_path, raw)
    assert sorted(map(len, files(corpus, "prose"))) == sorted([*(3000 + 100 * n for n in range(30)), 3 * CHUNK + 5000])
    assert corpus.sources == ["raw/conf", "raw/texts"] or corpus.sources == ["raw/texts", "raw/conf"]
    about = json.loads((tmp_path / "corpus.json").read_text())
    assert about["bytes"]["prose"] == sum(map(len, files(corpus, "prose")))
    assert "raw/texts" in (tmp_path / "corpus.txt").read_text()

    rng = random.Random(1)
    drawn = [corpus.sample(rng) for _ in range(300)]
    assert {kind for _, kind in drawn} == {"prose", "small"}
    assert all(len(chunk) <= CHUNK for chunk, _ in drawn)
    assert {CHUNK, 5000} <= {len(chunk) for chunk, _ in (corpus.sample(rng, "prose") for _ in range(2000))}


@pytest.mark.parametrize("take", [1000, 10_000, CHUNK])
def test_kinds_are_seen_by_weight_in_bytes(tmp_path: Path, raw: Path, take: int) -> None:
    for number in range(100):
        write(raw, f"a/{number}.txt", prose(number, 1500 if number % 2 else 45_000))
        write(raw, f"b/{number}.ini", prose(1000 + number, 300))
    built(tmp_path, raw)
    corpus = Corpus(str(tmp_path / "corpus"), take=take)
    rng = random.Random(1)
    size = {"prose": 0, "small": 0}
    for _ in range(20_000):
        chunk, kind = corpus.sample(rng)
        size[kind] += min(take, len(chunk))
    used = [
        min(take, len(chunk)) * (1 if len(chunk) == 1500 else 1j)
        for chunk, _ in (corpus.sample(rng, "prose") for _ in range(9000))
    ]
    short = sum(used).real / abs(sum(x.imag for x in used))
    want = filekinds.KINDS["prose"].weight / filekinds.KINDS["small"].weight
    assert size["prose"] / size["small"] == pytest.approx(want, rel=0.25)
    assert short == pytest.approx(1500 / 45_000, rel=0.2)


def test_duplicates_are_dropped(tmp_path: Path, raw: Path) -> None:
    data = prose(1, 20_000)
    write(raw, "a/1.txt", data)
    write(raw, "b/2.txt", data)
    write(raw, "c/3.txt", data[:15_000] + prose(2, 2000))
    assert len(files(built(tmp_path, raw), "prose")) == 1


def test_foreign_content_is_dropped(tmp_path: Path, raw: Path) -> None:
    bench = prose(7, 20_000)
    write(tmp_path / "bench", "x", bench)
    write(raw, "a/1.txt", prose(1, 20_000))
    write(raw, "a/2.txt", prose(2, 20_000) + bench[4000:6000])
    corpus = built(tmp_path, raw, exclude_content=[str(tmp_path / "bench")])
    assert files(corpus, "prose") == [prose(1, 20_000)]


def test_no_source_dominates(tmp_path: Path, raw: Path) -> None:
    for number in range(50):
        write(raw, f"big/{number}.txt", prose(number, 20_000))
    write(raw, "small/1.txt", prose(1000, 20_000))
    corpus = built(tmp_path, raw, size=2 << 20)
    limit = (
        (2 << 20)
        * filekinds.KINDS["prose"].weight
        / 100
        * filekinds.KINDS["prose"].keep
        * filekinds.KINDS["prose"].source_share
    )
    big = corpus.index[corpus.index["source"] == corpus.sources.index("raw/big")]
    assert limit <= big["length"].sum() <= limit + 20_000
    assert prose(1000, 20_000) in files(corpus, "prose")


def test_held_out(tmp_path: Path, raw: Path) -> None:
    for number in range(400):
        write(raw, f"a/{number}.ini", prose(number, 500))
    train = built(tmp_path, raw)
    held = Corpus(str(tmp_path / "corpus"), split="held")
    assert 0 < len(held.index) < 16
    assert len(train.index) + len(held.index) == 400
    assert not set(files(train, "small")) & set(files(held, "small"))


def test_the_same_twice(tmp_path: Path, raw: Path) -> None:
    for number in range(50):
        write(raw, f"{number % 7}/{number}.txt", prose(number, 5000))
    built(tmp_path, raw)
    first = [(tmp_path / f"corpus{suffix}").read_bytes() for suffix in ("", ".npy", ".json", ".txt")]
    built(tmp_path, raw)
    assert first == [(tmp_path / f"corpus{suffix}").read_bytes() for suffix in ("", ".npy", ".json", ".txt")]


def test_an_index_of_another_corpus(tmp_path: Path, raw: Path) -> None:
    write(raw, "a/1.txt", prose(1, 5000))
    built(tmp_path, raw)
    with (tmp_path / "corpus").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="index"):
        Corpus(str(tmp_path / "corpus"))


def test_command(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(raw, "a/1.txt", prose(1, 5000))
    assert main(["corpus", "--out", str(tmp_path / "c"), str(raw)]) == 0
    assert files(Corpus(str(tmp_path / "c")), "prose") == [prose(1, 5000)]


def test_photographs_become_raw_pixels(tmp_path: Path, raw: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(1).integers(0, 256, (1100, 1700, 3), np.uint8)
    for number in range(6):
        image.fromarray(np.roll(noise, 97 * number)).save(raw / f"photo{number}.png")
    corpus = built(tmp_path, raw)
    made = files(corpus, "image")
    assert len(made) >= 6
    for data in made:
        magic, *sizes = data[:20].split()
        if magic == b"P6":
            assert len(data) == 3 * int(sizes[0]) * int(sizes[1]) + len(b"P6\n%s %s\n255\n" % (sizes[0], sizes[1]))


# ------------------------------------------------------------------------------------------------------------ fetching


def test_fetch_uses_the_clients_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    for name, script in (("npm", 'echo x > "$2-1.0.0.tgz"; [ "$2" != d3 ]'), ("pip", "exit 1")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("nnfs.train.fetch.sys.executable", str(tmp_path / "bin" / "pip"))
    made = fetch.fetch(str(tmp_path / "raw"))
    assert (tmp_path / "raw" / "npm" / "lodash-1.0.0.tgz").exists()
    said = capsys.readouterr().err
    assert "debian: skipped, there is no apt-get" in said
    assert "npm: not to be had: d3" in said
    assert "pypi-source: not to be had: aiohttp " in said
    assert all(Path(folder).is_dir() for folder in made)
    assert not list((tmp_path / "raw" / "debian").iterdir())

    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\nexit 9\n")  # nothing is fetched twice
    fetch.fetch(str(tmp_path / "raw"))
    assert "npm: not" not in capsys.readouterr().err
