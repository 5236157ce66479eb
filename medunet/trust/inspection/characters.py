"""Characters that make a text look like another one: invisible, bidirectional, look-alikes of special marks."""

from __future__ import annotations

import unicodedata

_SPECIAL = ("_target_", "_mode_", "_requires_", "_disabled_", "_debug_")


def odd_characters(text: str) -> str:
    """What is invisible or turns the direction of reading, in words; empty if nothing is."""
    for letter in text:
        if letter.isascii():
            if (letter < " " and letter not in "\t\n\r") or letter == "\x7f":
                return f"the control character U+{ord(letter):04X}"
        elif unicodedata.category(letter) in ("Cf", "Cc", "Co", "Cs", "Zl", "Zp"):
            return f"the invisible character U+{ord(letter):04X}"
    return ""


def looks_special(text: str) -> str:
    """The mark or name that a non-ASCII text pretends to be; empty if none."""
    if text.isascii() or not text:
        return ""
    plain = unicodedata.normalize("NFKC", text).strip()
    if plain[:1] in "$@%" and text[:1] not in "$@%" and plain[:1]:
        return plain[0]
    folded = "".join(letter for letter in plain if unicodedata.category(letter) not in ("Cf", "Mn"))
    return next((name for name in _SPECIAL if folded == name or _skeleton(folded) == name), "")


def _skeleton(text: str) -> str:
    """Letters of other scripts that look like Latin ones, as those."""
    return text.translate(_LATIN)


_LATIN = str.maketrans("аеорсухіјѕԁɡӏτνοαιɑｔ＿‗", "aeopcyxijsdgltvoaiat__")
