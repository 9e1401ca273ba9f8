"""Why a word that seems to stand in a caption does not: characters that cannot be told apart.

The comparison itself is exact, because the text encoder reads what was compared: a word in another
spelling would bind nothing. Here it is only explained.
"""

import unicodedata

_TWINS = {  # letters of Cyrillic and Greek, and dashes, as the Latin ones that they look like
    "A": "АΑ", "B": "ВΒ", "C": "СϹ", "E": "ЕΕ", "H": "НΗ", "I": "ІΙ", "J": "Ј", "K": "КΚ",
    "M": "МΜ", "N": "Ν", "O": "ОΟ", "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "X": "ХΧ", "Y": "ҮΥ", "Z": "Ζ",
    "a": "аα", "c": "сϲ", "d": "ԁ", "e": "е", "h": "һ", "i": "іι", "j": "ј", "k": "к", "o": "оο",
    "p": "рρ", "q": "ԛ", "s": "ѕ", "v": "ν", "w": "ԝ", "x": "хχ", "y": "у",
    "'": "’‘ʼ＇",
}  # fmt: skip
_LATIN = {twin: letter for letter, twins in _TWINS.items() for twin in twins}


def explain_spelling(word: str, caption: str) -> str | None:
    """Name the characters by which `word` and its place in `caption` differ, if the eye sees none.

    None where the word does not even seem to stand there.
    """
    wanted, _ = _as_seen(word)
    seen, places = _as_seen(caption)
    at = seen.find(wanted) if wanted else -1
    if at < 0:
        return None
    start, end = places[at], places[at + len(wanted) - 1] + 1
    while end < len(caption) and not _as_seen(caption[end])[0]:
        end += 1
    found = [f"the caption has {name} at {start + i}" for i, name in _odd(caption[start:end])]
    found += [f"the picture's word has {name} at {i}" for i, name in _odd(word)]
    return "; ".join(found[:3]) or None


def _as_seen(text: str) -> tuple[str, list[int]]:
    """Return the text as the eye reads it, and for each of its characters the place in `text`."""
    seen, places = [], []
    for i, char in enumerate(text):
        for plain in _plain(char):
            seen.append(plain)
            places.append(i)
    return "".join(seen), places


def _plain(char: str) -> str:
    kind = unicodedata.category(char)
    if kind in ("Cf", "Mn", "Cc"):  # formatting, marks on the letter before, controls
        return ""
    if kind == "Pd" or char in "\u2212\u2043":
        return "-"
    if kind == "Zs":
        return " "
    char = unicodedata.normalize("NFKD", _LATIN.get(char, char))
    return "".join(c for c in char if unicodedata.category(c) != "Mn")


def _odd(text: str) -> list[tuple[int, str]]:
    """Return the characters that look like others, or like nothing: place and name."""
    return [
        (i, f"U+{ord(char):04X} ({unicodedata.name(char, 'a control character').lower()})")
        for i, char in enumerate(text)
        if _plain(char) != char
    ]
