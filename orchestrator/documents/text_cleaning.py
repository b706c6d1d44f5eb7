"""Text as pypdf gives it becomes text as a reader sees it."""

import re
import unicodedata

_LIGATURES = {
    0xFB00: "ff",
    0xFB01: "fi",
    0xFB02: "fl",
    0xFB03: "ffi",
    0xFB04: "ffl",
    0xFB05: "st",
    0xFB06: "st",
}
_SPACES = (0x09, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_LINE_ENDS = (0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029)
_INVISIBLE = (0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB, 0xFFFE, 0xFFFF)
_CHARACTERS: dict[int, str | None] = {
    **dict.fromkeys(range(0x20)),
    **dict.fromkeys(range(0x7F, 0xA0)),
    **dict.fromkeys(_INVISIBLE),
    **dict.fromkeys(_SPACES, " "),
    **dict.fromkeys(_LINE_ENDS, "\n"),
    **_LIGATURES,
    0x0A: "\n",
}

_SURROGATE = re.compile("[\ud800-\udfff]")
# PDFium writes U+FFFE, older ones U+0002, for the hyphen of a word that it knows to be broken.
_SOFT_HYPHEN_AT_LINE_END = re.compile("[\u00ad\ufffe\u0002][ \t]*\r?\n[ \t]*")
_HYPHEN_AT_LINE_END = re.compile("([a-zß-öø-ÿ]{2})[-\u2010]\n([a-zß-öø-ÿ]{2})")
_SPACES_RUN = re.compile(" {2,}")
_SPACES_AROUND_LINE_END = re.compile(" ?\n ?")
_BLANK_LINES = re.compile("\n{3,}")
_GLYPH_NAMES = re.compile(r"(?:/[gG]\d{1,5})+")
_MANY_GLYPH_NAMES = 20


def compact(text: str) -> str:
    """
    The letters and digits of a text, however it is spaced, hyphenated, or its accents composed.

    Of one page, what PDFium, pypdf and `clean` make has the same compact text, nearly always: it says
    where on the page a passage stands.
    """
    letters = unicodedata.normalize("NFKD", text.translate(_CHARACTERS)).lower()
    return "".join(character for character in letters if character.isalnum())


def clean(text: str) -> str:
    """
    The text without what no reader sees, in lines that end with a newline character.

    Control characters, lone surrogates and invisible marks go; Latin ligatures become letters;
    words broken at a line's end by a soft hyphen, or by a hyphen between lower-case letters,
    become whole; runs of spaces become one and runs of blank lines one; accents are composed (NFC).
    """
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    text = _SOFT_HYPHEN_AT_LINE_END.sub("", text)
    text = text.replace("\r\n", "\n").translate(_CHARACTERS)
    text = _without_glyph_names(text)
    text = _SPACES_RUN.sub(" ", text)
    text = _SPACES_AROUND_LINE_END.sub("\n", text)
    text = _HYPHEN_AT_LINE_END.sub(r"\1\2", text)
    text = _BLANK_LINES.sub("\n\n", text)
    return unicodedata.normalize("NFC", text.strip())


def _without_glyph_names(text: str) -> str:
    # Fonts without a character map come out as "/g18/g152/g3": noise that would fill every chunk.
    if text.count("/g") + text.count("/G") < _MANY_GLYPH_NAMES:
        return text
    return _GLYPH_NAMES.sub(" ", text)
