"""Recognition of the language of a text: by its script, then by its commonest short words.

Good enough to file documents into a handful of languages, and to tell prose from lists, tables and test data.
"""

from __future__ import annotations

import re
from collections import Counter

_WORDS = {
    "en": "the of to that with this are be it you which can was he his but have has they when we",  # none of SQL
    "de": "der die und das ist nicht sie mit ein eine den von zu werden auf für dem im des wird oder sich auch wenn",
    "fr": "le la les des et est une pour dans vous que qui sur par avec pas du ce ou au sont ne cette être",
    "es": "el los las una para que por con del se es como más puede este esta si al lo su no esto archivo",
    "pl": "nie jest się na do że lub może dla jak to przez są jeśli po oraz który być plik tylko od czy ten",
    "it": "il di che per non una con del è sono della gli nel alla come questo più le dei anche può essere",
    "pt": "não uma para com os do da em que por são como mais das dos ser você este pode ou ao seu está",
    "nl": "het een van niet voor met zijn wordt naar bestand dat deze als om te door kan bij aan worden",
    "cs": "je se na že pro nebo které jako není být při soubor podle pokud této ke tak jsou jen můžete",
    "sv": "och att det som är för inte med den till av på om ett kan har eller från ska var men du",
    "tr": "ve bir için bu ile olarak dosya değil olan veya daha gibi çok kadar sonra ise her",
    "hu": "az és egy nem hogy ha meg vagy is csak azt volt ez mint már fájl",
}
_SPEAKS: dict[str, list[str]] = {}
for _name, _list in _WORDS.items():
    for _word in _list.split():
        _SPEAKS.setdefault(_word, []).append(_name)
_TOKEN = re.compile(r"[^\W\d_]+")
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>|&\w+;|`[^`\n]*`", re.DOTALL)
_KANA, _HANGUL, _HAN = re.compile("[\u3040-\u30ff]"), re.compile("[\uac00-\ud7af]"), re.compile("[\u4e00-\u9fff]")
_CYRILLIC, _UKRAINIAN = re.compile("[\u0400-\u04ff]"), re.compile("[іїєґІЇЄҐ]")
_NEITHER = re.compile("[ўјљњћџђѝЎЈЉЊЋЏЂ]")  # letters of other languages than Russian and Ukrainian
_FOREIGN = re.compile("[\u0370-\u03ff\u0530-\u0eff\u1000-\u137f\uac00-\ud7af\u3040-\u30ff]")
_TELLING = frozenset(["he", "she", "his", "her", "him", "had", "was", "were", "said", "would", "could"])
MIN_TELLING = 0.048  # of all words; novels have 0.05 to 0.13, lives in an encyclopaedia 0.04, manuals 0.01
MIN_WORDS = 6  # common words wanted as evidence
MIN_SHARE = 0.09  # of all words; running English has 0.15 to 0.25, code with comments 0.02 to 0.08


def language(data: bytes) -> str | None:
    """Return the ISO 639-1 code of a text in UTF-8, "other" for an unknown language, None for no running text."""
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") * 20 > len(text):
        return "other"  # another charset
    text = _MARKUP.sub(" ", text)
    if not text.isascii() and (spoken := _by_script(text)) is not None:
        return spoken
    words = _TOKEN.findall(text.lower())
    scores: Counter[str] = Counter()
    for word, count in Counter(words).items():
        for name in _SPEAKS.get(word, ()):
            scores[name] += count
    best = max(_WORDS, key=lambda name: (scores[name], name == "en"))
    if scores[best] < max(MIN_WORDS, MIN_SHARE * len(words)):
        return None
    return best if scores[best] > 1.2 * scores["en"] else "en"


def narrative(data: bytes) -> bool:
    """Return whether an English text tells a story."""
    words = _TOKEN.findall(data.decode("utf-8", "replace").lower())
    return sum(word in _TELLING for word in words) > max(20, MIN_TELLING * len(words))


def _by_script(text: str) -> str | None:
    letters = max(1, sum(map(len, _TOKEN.findall(text))))
    if len(_KANA.findall(text)) * 25 > letters:
        return "ja"
    if len(_HANGUL.findall(text)) * 8 > letters:
        return "ko"
    if len(_HAN.findall(text)) * 12 > letters:  # a sign of Chinese says as much as several letters
        return "zh"
    if (cyrillic := len(_CYRILLIC.findall(text))) * 6 > letters:
        if len(_NEITHER.findall(text)) * 100 >= cyrillic:
            return "other"
        return "ru" if len(_UKRAINIAN.findall(text)) * 100 < cyrillic else "uk"
    return "other" if len(_FOREIGN.findall(text)) * 6 > letters else None
