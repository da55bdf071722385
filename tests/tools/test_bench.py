"""tools/bench: its arguments, its tables, the limit of time, and how it takes another commit."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import REPO

sys.path.insert(0, str(REPO / "tools" / "lib"))

from bench import __main__ as command
from bench import child, coding, corpus, fit, machine, runs, tables, training, whole
from bench.codec.sample import pieces
from bench.table import (
    Answer,
    Case,
    Line,
    Missing,
    Result,
    Setting,
    Table,
    Task,
    block,
    figure,
    merged,
    replaced,
    with_figures,
)

from tests.tools.benchkit import CASE, GOOD, line, table

# --------------------------------------------------------------------------------------------------------------- format


def written(*results: Result, keep: tuple[str, ...] = ()) -> list[str]:
    """The lines of a table below its head."""
    return block(table(), results, "About it.", keep).splitlines()[4:]


def test_a_table_is_markdown() -> None:
    text = block(table(), [Result(CASE, GOOD)], "About it.")
    assert text == "About it.\n\n| codec | what | KB/s | s |\n|---|---|---|---|\n| cm | all | 150 | 2.00 |\n"


def test_what_is_said_about_a_table_is_wrapped() -> None:
    lines = block(table(), [], "many-hyphened words " * 20).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any(one.endswith("-") for one in lines)


def test_a_ratio_above_one_is_better() -> None:
    (shown,) = written(Result(CASE, GOOD, Answer((line(75.2, 5),))))
    assert shown == "| cm | all | 150 (x 2) | 2.00 (x 2.5) |"
    slower = replace(line(150, 2), less_is_better=True)
    (shown,) = written(Result(CASE, Answer((slower,)), Answer((line(75, 5),))))
    assert shown == "| cm | all | 150 (x 0.5) | 2.00 (x 2.5) |"


@pytest.mark.parametrize("other", [Answer(problem="no codec", is_missing=True), Answer((line(1, 1, "else"),))])
def test_what_the_other_commit_does_not_know_is_a_dash(other: Answer) -> None:
    assert written(Result(CASE, GOOD, other)) == ["| cm | all | 150 (-) | 2.00 (-) |"]


def test_only_figures_that_both_have_are_compared() -> None:
    assert written(Result(CASE, GOOD, Answer((Line(("all",), {"s": 1}),)))) == ["| cm | all | 150 | 2.00 (x 0.5) |"]


def test_a_problem_stands_in_its_row() -> None:
    problem = Answer(problem="Failed: a | b\nand " + "more " * 100)
    (shown,) = written(Result(CASE, problem, GOOD))
    assert shown.startswith("| cm |  | Failed: a &#124; b and more ")
    assert shown.endswith(" | - |")
    assert len(shown) < 200


def test_a_case_without_cells_of_its_own_is_named_by_its_key() -> None:
    (shown,) = written(Result(replace(CASE, labels=()), Answer(problem="late")))
    assert shown == "| first |  | late | - |"


def test_a_figure_that_is_not_there_is_a_dash() -> None:
    assert written(Result(CASE, Answer((line(None, 1),)))) == ["| cm | all | - | 1.00 |"]


def test_a_page_may_choose_lines() -> None:
    second = replace(CASE, labels=("ppm",), key="second")
    results = Result(CASE, GOOD), Result(second, GOOD)
    assert len(written(*results)) == 2
    assert written(*results, keep=("second",)) == ["| ppm | all | 150 | 2.00 |"]


def test_tables_between_marks_are_replaced() -> None:
    page = "a\n<!-- bench t -->\nold\n<!-- end of bench -->\nb\n<!-- bench t x y -->\n<!-- end of bench -->\n"
    other = "<!-- bench u -->\nstays\n<!-- end of bench -->\n"
    new = replaced(page + other, {"t": lambda keep: f"new {' '.join(keep)}\n"})
    assert new == (
        "a\n<!-- bench t -->\nnew \n<!-- end of bench -->\nb\n<!-- bench t x y -->\nnew x y\n<!-- end of bench -->\n"
        + other
    )


def test_figures_between_marks_are_replaced() -> None:
    results = [Result(CASE, Answer(problem="late")), Result(CASE, Answer((line(150, 2), line(7, 8))))]
    page = "of <!-- figure t kbps -->1<!-- end of figure -->, <!-- figure u kbps -->1<!-- end of figure --> KB"
    new = with_figures(page, {"t": functools.partial(figure, table(), results)})
    assert new == page.replace("-->1<", "-->150<", 1)
    assert with_figures(page, {"t": functools.partial(figure, table(), results[:1])}) == page


def test_the_median_of_rounds_counts() -> None:
    rounds = [Answer((line(value, None),)) for value in (1, 9, 2)]
    assert merged([*rounds, Answer(problem="late")]).lines == (line(2, None),)
    assert merged([Answer(problem="first"), Answer(problem="second")]).problem == "first"


# ------------------------------------------------------------------------------------------------------------ arguments


def test_all_tables_are_measured_by_default() -> None:
    args = command.arguments([])
    assert set(args.only) == {one.name for one in tables.TABLES}
    assert (args.quick, args.against, args.write) == (False, None, False)


@pytest.mark.parametrize("words", [["--only", "speed,nothing"], ["--levels", "mmx"], ["--limit", "soon"], ["x"]])
def test_what_is_unknown_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.arguments(words)
    assert ended.value.code == 2
    assert words[-1].split(",")[-1] in capsys.readouterr().err


def test_the_command_explains_itself() -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([REPO / "tools/bench", "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {one.name} " in done.stdout for one in tables.TABLES)


# ---------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Table]:
    """A list of tables, and pages, in place of the real ones; nothing is measured, each case says what came of it."""
    fakes: list[Table] = []
    here, other = runs.Checkout("new", tmp_path, ("avx2",)), runs.Checkout("old", tmp_path, is_other=True)
    monkeypatch.setattr(command, "TABLES", fakes)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "PAGES", ("page.md",))
    monkeypatch.setattr(runs, "checkout", lambda root, is_other=False: other if is_other else here)

    def measured(where: runs.Checkout, _table: str, case: Case, _limit: float, _work: Path) -> Answer:
        found: Answer = case.task[where.name]
        return found

    monkeypatch.setattr(runs, "measured", measured)
    return fakes


def test_a_run_prints_and_writes(faked: list[Table], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faked.append(table(Case(("cm",), {"new": GOOD})))
    (tmp_path / "page.md").write_text("# Page\n<!-- bench t -->\n<!-- end of bench -->\n")
    assert command.main(["--work", str(tmp_path), "--write"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("## A table\n\n20")
    assert "`tools/bench --only t`" in shown.replace("\n", " ", 3)
    assert "commit `new`" in shown
    assert "| cm | all | 150 | 2.00 |" in shown
    assert (tmp_path / "page.md").read_text() == f"# Page\n<!-- bench t -->\n{shown[12:-1]}<!-- end of bench -->\n"


@pytest.mark.parametrize(("is_missing", "status"), [(False, 1), (True, 0)])
def test_a_measurement_that_fails_ends_nothing_but_itself(
    faked: list[Table], tmp_path: Path, capsys: pytest.CaptureFixture[str], is_missing: bool, status: int
) -> None:
    bad = Answer(problem="no end within 5 s", is_missing=is_missing)
    faked.append(table(Case(("cm",), {"new": bad}), Case(("ppm",), {"new": GOOD})))
    assert command.main(["--work", str(tmp_path)]) == status
    shown = capsys.readouterr().out
    assert "| cm |  | no end within 5 s | - |" in shown
    assert "| ppm | all | 150 | 2.00 |" in shown


def test_missing_data_is_told_before_anything_is_measured(faked: list[Table], tmp_path: Path) -> None:
    def cases(setting: Setting) -> list[Case]:
        setting.corpus.path("enwik")
        raise AssertionError

    faked.append(replace(table(), cases=cases))
    for data, words in ((tmp_path / "nowhere", "is not there"), (tmp_path, "has no enwik")):
        with pytest.raises(SystemExit, match=f"{words}: --data names a folder"):
            command.main(["--work", str(tmp_path), "--data", str(data)])


# ------------------------------------------------------------------------------------------------------ one measurement


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (Missing("no codec"), Answer(problem="no codec", is_missing=True)),
        (ImportError("no module nnfs.new"), Answer(problem="no module nnfs.new", is_missing=True)),
        (ValueError("wrong"), Answer(problem="ValueError: wrong")),
    ],
)
def test_an_error_is_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, answer: Answer) -> None:
    def measure(_task: Task) -> Iterable[Line]:
        yield line(1, 1)
        raise error

    monkeypatch.setattr(tables, "named", lambda _: replace(table(), measure=measure))
    assert child.answered("t", {}) == answer


def test_modules_that_moved_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MOVED", {"today": "json", "json": "nowhere"})
    child.follow_moves()
    import today.decoder  # type: ignore[import-not-found]

    assert today.decoder.JSONDecoder
    for name in ("today", "today.decoder"):
        monkeypatch.delitem(sys.modules, name)


def test_the_table_of_the_coverage_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "12 passed\n| room | statements | run by tests |\n|---|---|---|\n| fs | 2,917 | 92.0 % |\n"
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 0, said))
    assert list(whole.coverage({})) == [Line(("fs",), {"statements": 2917.0, "share": 92.0})]


def test_a_delta_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"content_bytes": 100_000, "held_out_bytes": 1000, "base_stored": 500, "fitted_stored": 400}
    monkeypatch.setattr(fit, "fitted", lambda *_: {**found, "delta_bytes": 1000})
    (shown,) = coding.fitting({"path": "logs", "seconds": 1})
    assert shown.values == {"plain": 100, "base": 50, "fitted": 40, "delta": 1, "less": pytest.approx(16)}


@pytest.mark.parametrize("name", child.MOVED)
def test_modules_that_moved_are_there_today(name: str) -> None:
    assert importlib.util.find_spec(name)


def test_an_unknown_codec_is_missing() -> None:
    with pytest.raises(Missing, match="no codec nonsense"):
        coding.coded(coding.coding("nonsense", pieces(REPO / "LICENSE", 4096, None)[:1], 1))


# ----------------------------------------------------------------------------------------------------- data and machine


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A small corpus that has all that is asked for."""
    root = tmp_path / "dev"
    for place, _ in corpus.TEN.values():
        name = place if "/" in place else f"{place}/one"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(place.encode() * 120_000)
    for names in (*corpus.CONTENT.values(), coding.SETS.values()):
        for name in names:
            if not (root / name).exists():
                (root / name).mkdir(parents=True)
                (root / name / "large").touch()
                os.truncate(root / name / "large", 5 << 20)
    return root


def test_every_case_can_be_handed_to_a_process(files: Path, tmp_path: Path) -> None:
    with tarfile.open(files / training.ARCHIVE, "w:xz") as tar:
        tar.add(files / "enwik", "train/text")
    setting = Setting(tmp_path, files, ("avx2", "portable"), 2)
    assert len({one.name for one in tables.TABLES}) == len(tables.TABLES)
    for quick in (True, False):
        for one in tables.TABLES:
            for case in one.cases(replace(setting, is_quick=quick)):
                assert json.loads(json.dumps(case.task)) is not None
                assert len(case.labels) <= len(one.heads)


def test_ten_chunks(files: Path, tmp_path: Path) -> None:
    ten = corpus.Corpus(files).ten(tmp_path)
    assert len(ten) == 10
    assert max(piece.length for piece in ten) == corpus.CHUNK
    assert ten[3].read().startswith((b"bin/elf/etree.cpython-311-x86_64-linux-gnu.so" * 120_000)[400_000:][:50])


def test_too_few_chunks_are_told(files: Path) -> None:
    with pytest.raises(corpus.NoData, match="chunks of sound, and 1000 are measured"):
        corpus.Corpus(files).chunks("sound", 1000)


def test_the_archive_is_unpacked(files: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / corpus.ARCHIVE, "w:xz") as tar:
        tar.add(files / "enwik", "dev/enwik")
    (tmp_path / "work").mkdir()
    found = corpus.opened(tmp_path, tmp_path / "work")
    assert found.folder == tmp_path / "work/corpus/dev"
    assert found.path("enwik").is_dir()


@pytest.mark.parametrize(
    ("cpuinfo", "words"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n", "Some CPU, 4 cores (avx2 avx512_vnni), 24 GiB"),
        ("CPU part\t: 0xd40\nFeatures\t: fp asimddp\n", "0xd40, 4 cores (asimddp), 24 GiB"),
        ("", "unknown CPU, 4 cores (no vectors), 24 GiB"),
    ],
)
def test_a_machine_in_a_few_words(cpuinfo: str, words: str) -> None:
    assert machine.described(cpuinfo, "MemTotal:       24683772 kB\n", 4) == words


@pytest.mark.parametrize("page", command.PAGES)
def test_marks_of_pages_name_tables_and_their_lines(page: str) -> None:
    asked: dict[str, set[str]] = {}

    def note(name: str, keep: Sequence[str]) -> str:
        asked[name] = set(keep)
        return ""

    text = (REPO / page).read_text(encoding="utf-8")
    replaced(text, {one.name: functools.partial(note, one.name) for one in tables.TABLES})
    assert text.count("<!-- bench ") == len(asked) > 0
    figures = {one.name: functools.partial(figure, one, ()) for one in tables.TABLES}  # raise for an unknown column
    assert text.count("<!-- figure ") == len(re.findall("<!-- figure (" + "|".join(figures) + r") \w+ -->", text))
    with_figures(text, figures)
    assert asked.get("fs", set()) <= {case.key for case in whole.fs_cases(Setting(REPO, REPO))}
    if page == "nnfs/FIGURES.md":
        assert set(asked) == {one.name for one in tables.TABLES} - {"methods", "pieces"}  # these have another page
