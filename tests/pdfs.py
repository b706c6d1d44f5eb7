"""
PDFs made in code, the same bytes every time: pleasant, odd, damaged and hostile ones.

`handbook()` is the sample that the README, the screenshots and the contract tests ask about.
"""

import sys
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pypdfium2  # type: ignore[import-untyped] # ships no types
from PIL import Image, ImageDraw
from reportlab.lib import colors  # type: ignore[import-untyped] # ships no types
from reportlab.lib.pagesizes import A4  # type: ignore[import-untyped] # ships no types
from reportlab.lib.pdfencrypt import StandardEncryption  # type: ignore[import-untyped] # no types
from reportlab.lib.styles import ParagraphStyle  # type: ignore[import-untyped] # ships no types
from reportlab.lib.units import mm  # type: ignore[import-untyped] # ships no types
from reportlab.lib.utils import ImageReader  # type: ignore[import-untyped] # ships no types
from reportlab.pdfgen.canvas import Canvas  # type: ignore[import-untyped] # ships no types
from reportlab.platypus import (  # type: ignore[import-untyped] # ships no types
    Flowable,
    PageBreak,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)


class HandbookQuestion(NamedTuple):
    """A question about the handbook, the page that answers it, and words the answer must hold."""

    question: str
    page: int
    answer: str


HANDBOOK_QUESTIONS = [
    HandbookQuestion("In which year did Merrow Sound Station open?", 1, "1974"),
    HandbookQuestion("At what water level are the gates closed?", 2, "3.40"),
    HandbookQuestion("How long does a full closing of all four gates take?", 2, "22 minutes"),
    HandbookQuestion("On which VHF channel does the control room listen?", 3, "channel 14"),
    HandbookQuestion("How many people must be on a night watch?", 3, "three"),
    HandbookQuestion("What is the largest draught of a vessel using the lock?", 4, "5.8"),
    HandbookQuestion("What does a fishing boat pay for passing the lock?", 4, "18 crowns"),
    HandbookQuestion("How often are the hydraulic seals replaced?", 5, "30 months"),
    HandbookQuestion("Which oil goes into the gate hydraulics?", 5, "Brinol 46"),
    HandbookQuestion(
        "Where is the assembly point when the evacuation siren sounds?", 6, "Lamp Hill"
    ),
    HandbookQuestion("Is the eel ramp lit during the autumn run?", 7, "not lit"),
    HandbookQuestion("Who was the first keeper of the station?", 1, "Ottilie Varn"),
]

_HANDBOOK: list[tuple[str, list[str | list[list[str]]]]] = [
    (
        "1. The Station",
        [
            (
                "Merrow Sound Tide-Gate Station stands where the river Ashel meets the sea. It lets the "
                "river out at every ebb and holds the surge back when the wind stands in the north-west. "
                "The station opened in 1974, after the flood of the winter before had reached the "
                "market square of Port Merrow."
            ),
            (
                "Its first keeper was Ottilie Varn, who wrote the opening pages of this handbook by "
                'hand. Her rule still hangs in the control room: "Let out what you can while you can, '
                'and never close on a guess."'
            ),
            (
                "Four steel gates, named Anna, Bertil, Cora and David from west to east, close the "
                "sound over a width of 164 metres. Beside them lies a lock for vessels. Forty-one "
                "people work here in five watches."
            ),
            (
                "This handbook is for everybody who stands a watch. It says what is to be done, by whom, "
                "and why. Where it is wrong, write to the harbour office; where it is silent, ask the "
                "officer of the watch."
            ),
        ],
    ),
    (
        "2. Closing the Gates",
        [
            (
                "The gates are closed when the outer gauge is forecast to pass 3.40 metres above datum "
                "within six hours. The officer of the watch decides, and writes the forecast, the "
                "decision and the time into the log before the first gate moves."
            ),
            (
                "A full closing of all four gates takes 22 minutes. Bertil and Cora close first, then "
                "Anna and David, so that the current through the outer openings stays below two metres "
                "a second."
            ),
            (
                "While the gates are closed, the river rises behind them by about nine centimetres an "
                "hour. The gates must be opened again before the inner gauge passes 2.15 metres, unless "
                "the harbour master orders otherwise."
            ),
            (
                "Never close more than two gates with a vessel in the approach. A vessel that is inside "
                "the yellow buoys has priority over every gate, but not over a surge warning."
            ),
        ],
    ),
    (
        "3. Watches and Communication",
        [
            (
                "The day is divided into three watches of eight hours: 06:00, 14:00 and 22:00. A night "
                "watch is never smaller than three people, one of whom holds the gate certificate."
            ),
            (
                "The control room listens on VHF channel 14 at all times, and on channel 16 for distress "
                "calls. Every message that changes what a gate does is read back word for word."
            ),
            (
                "A watch is handed over standing, at the large desk, with the log open. The officer who "
                "leaves names every gate's position, the next high water, the vessels expected and "
                "everything that is broken. The officer who arrives repeats it."
            ),
            (
                "The telephone with the red handle goes straight to the weather office in Halden. It is "
                "tested every Monday at 09:30; a test that fails is repaired the same day."
            ),
        ],
    ),
    (
        "4. The Lock",
        [
            (
                "The lock takes vessels up to 92 metres long and 13.5 metres wide. The largest draught "
                "is 5.8 metres at mean low water. Vessels over 60 metres call two hours ahead."
            ),
            [
                ["Vessel", "Fee by day", "Fee by night"],
                ["Rowing and sailing boat", "4 crowns", "6 crowns"],
                ["Fishing boat", "18 crowns", "18 crowns"],
                ["Coaster under 60 m", "75 crowns", "90 crowns"],
                ["Coaster over 60 m", "140 crowns", "180 crowns"],
                ["Rescue and police", "free", "free"],
            ],
            (
                "Fees are paid to the lock keeper in coin or by card. A vessel that waits for more than "
                "90 minutes through no fault of its own passes free of charge."
            ),
            (
                "The lock closes to all traffic when the wind passes 22 metres a second, measured at the "
                "mast on the eastern pier over ten minutes."
            ),
        ],
    ),
    (
        "5. Maintenance",
        [
            (
                "Each gate is taken out of service once a year, between May and August, and never two in "
                "the same month. The order is drawn by lot in March."
            ),
            (
                "The hydraulic seals are replaced every 30 months, whether they leak or not. The "
                "hydraulics are filled with Brinol 46, a biodegradable oil, 2,150 litres to a gate. No "
                "other oil is kept on the station, so that no other oil can be used by mistake."
            ),
            (
                "Zinc anodes are weighed at every service. An anode that has lost more than 60 percent "
                "of its weight is replaced."
            ),
            (
                "The emergency diesel, a twelve-cylinder Halvard, runs for one hour on the first "
                "Wednesday of the month. It carries two gates and the lights, not four gates."
            ),
        ],
    ),
    (
        "6. Emergencies",
        [
            (
                "The evacuation siren is a rising tone of one minute. When it sounds, everybody leaves "
                "the gates by the western stair and walks to the assembly point on Lamp Hill. The "
                "officer of the watch calls the roll; nobody returns for belongings."
            ),
            (
                'A person in the water is reported with the words "soul over" and the name of the gate. '
                "The gate stops at once, in either direction, and stays as it is until the officer of "
                "the watch has the person in sight."
            ),
            (
                "If both pumps of a gate fail, it can be lowered by hand with the brake wheel. Two "
                "people need 75 minutes for it. The wheel turns against the clock."
            ),
            (
                "Oil on the water is fenced in with the 400-metre boom stored in shed seven, and "
                "reported to the coast guard within fifteen minutes."
            ),
        ],
    ),
    (
        "7. Fish, Birds and Neighbours",
        [
            (
                "Eels pass the station in both directions. The eel ramp beside gate David is kept wet "
                "from April to November. It is not lit during the autumn run, because eels turn back "
                "from light."
            ),
            (
                "Terns breed on the roof of shed two. From the tenth of May until the last chick has "
                "flown, nobody walks there, and the flag is not hoisted."
            ),
            (
                "The people of Port Merrow are told of every closing that they can hear. Between 22:00 "
                "and 06:00 the warning horn is replaced by amber lights, unless a vessel is in the "
                "approach."
            ),
            (
                "School classes are welcome on Thursdays. A class is at most 28 children, and each of "
                "them may press the button of the lock bell once."
            ),
        ],
    ),
]


def handbook() -> bytes:
    """The Harbour Operations Handbook of a tide-gate station that does not exist: 7 pages."""
    head = ParagraphStyle("head", fontName="Helvetica-Bold", fontSize=17, leading=24)
    body = ParagraphStyle("body", fontName="Helvetica", fontSize=11, leading=16, spaceAfter=9)
    story: list[Flowable] = []
    for title, parts in _HANDBOOK:
        story += [Paragraph(title, head), Spacer(1, 4 * mm)]
        story += [_ruled(p) if isinstance(p, list) else Paragraph(p, body) for p in parts]
        story.append(PageBreak())
    out = BytesIO()
    document = SimpleDocTemplate(
        out,
        pagesize=A4,
        invariant=1,
        leftMargin=25 * mm,
        rightMargin=25 * mm,
        topMargin=25 * mm,
        bottomMargin=25 * mm,
        title="Harbour Operations Handbook",
        author="Merrow Sound Tide-Gate Station",
    )
    document.build(story, onFirstPage=_running_lines, onLaterPages=_running_lines)
    return out.getvalue()


def _ruled(rows: list[list[str]]) -> Flowable:
    """A table with lines around its cells."""
    table = Table(rows, colWidths=[70 * mm, 40 * mm, 40 * mm], spaceAfter=9)
    table.setStyle(
        TableStyle([
            ("GRID", (0, 0), (-1, -1), 0.4, colors.grey),
            ("FONTNAME", (0, 0), (-1, 0), "Helvetica-Bold"),
            ("FONTSIZE", (0, 0), (-1, -1), 10.5),
            ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
        ])
    )
    return table


def _running_lines(canvas: Canvas, document: Any) -> None:
    """Draw what stands on every page of the handbook."""
    canvas.setFont("Helvetica", 8.5)
    canvas.drawString(25 * mm, A4[1] - 14 * mm, "Harbour Operations Handbook")
    canvas.drawRightString(A4[0] - 25 * mm, 12 * mm, f"Merrow Sound Station - {document.page}")


def text_pdf(pages: Sequence[str]) -> bytes:
    """One page per text, line by line as given; Latin letters only."""
    return _drawn([_writer(text) for text in pages])


def two_column() -> bytes:
    """One page whose left column speaks of the ebb and whose right column speaks of the flood."""

    def draw(canvas: Canvas) -> None:
        for column, word in enumerate(("ebb", "flood")):
            text = canvas.beginText(20 * mm + column * 90 * mm, 270 * mm)
            text.setFont("Helvetica", 10)
            for line in range(1, 31):
                text.textLine(f"{word.capitalize()} line {line} tells of the {word}.")
            canvas.drawText(text)

    return _drawn([draw])


def table(rows: int = 40) -> bytes:
    """One page with a ruled table: gate, position, litres; one row a gate."""
    data = [["Gate", "Position", "Litres"]]
    data += [[f"Gate {n}", f"{n * 7 % 100} percent", f"{2000 + n}"] for n in range(1, rows + 1)]
    out = BytesIO()
    SimpleDocTemplate(out, pagesize=A4, invariant=1).build([Table(data, rowHeights=5.5 * mm)])
    return out.getvalue()


def encrypted(user_password: str) -> bytes:
    """A page that opens only with the password."""
    locked = StandardEncryption(user_password, ownerPassword="harbour", strength=128)
    return _drawn([_writer("The chart of the sound is secret.")], encrypt=locked)


def encrypted_empty_user_password() -> bytes:
    """A page that is encrypted and opens without a password, as many official filings are."""
    return encrypted("")


def image_only(pages: int = 2) -> bytes:
    """Pages that are pictures without a word on them."""
    return _drawn([_picture] * pages)


def scanned(pages: Sequence[str], *, dpi: int = 150) -> bytes:
    """Pages of text as a scanner gives them: each is a picture, and no text is in the file."""
    drawn = pypdfium2.PdfDocument(text_pdf(pages))
    pictures = [page.render(scale=dpi / 72).to_pil().convert("L") for page in drawn]
    out = BytesIO()
    pictures[0].save(out, format="PDF", save_all=True, append_images=pictures[1:], resolution=dpi)
    return out.getvalue()


def mixed(text_pages: Sequence[str], image_pages: int) -> bytes:
    """Pages of text, then as many pictures without a word as asked for."""
    return _drawn([*(_writer(text) for text in text_pages), *[_picture] * image_pages])


def no_pages() -> bytes:
    """A sound PDF without a page."""
    return _raw([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"])


def truncated() -> bytes:
    """The handbook's first 60 percent, as an upload that broke off leaves it."""
    whole = handbook()
    return whole[: len(whole) * 6 // 10]


def damaged() -> bytes:
    """A PDF whose catalog leads to no pages."""
    return _raw([b"<< /Type /Catalog /Pages 7 0 R >>", b"<< /Type /Nothing >>"])


def many_pages(n: int, text: str = "One of many pages.") -> bytes:
    """A document of `n` pages that share one content stream: 70 bytes a page."""
    kids = b" ".join(b"%d 0 R" % (5 + i) for i in range(n))
    page = b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R >>"
    return _raw([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
        b"/Kids [%s] /Count %d >>" % (kids, n),
        _FONT,
        _stream(_show(text)),
        *[page] * n,
    ])


def huge_text_page(chars: int) -> bytes:
    """One page of at least `chars` characters, in lines of 80: megabytes of text in kilobytes."""
    line = b"(%s) Tj T*\n" % (b"surge and ebb " * 6)[:80]
    return _one_page(b"BT /F1 8 Tf 10 TL 10 800 Td\n" + line * (chars // 80 + 1) + b"ET")


def flate_bomb(size_bytes: int) -> bytes:
    """One page whose content stream is a thousandth of the spaces that it unpacks to."""
    packer = zlib.compressobj(9)
    block = b" " * 1_000_000
    packed = b"".join(packer.compress(block) for _ in range(size_bytes // len(block)))
    return _one_page(packed + packer.flush(), packed=True)


def operand_bomb(count: int) -> bytes:
    """One page whose content is `count` numbers: each unpacks to an object of a hundred bytes."""
    return _one_page(b"1 " * count)


def deep_nesting(depth: int) -> bytes:
    """One page whose content is an array in an array, `depth` deep."""
    return _one_page(b"[" * depth + b"]" * depth + b" TJ")


def junk_prefixed(n: int) -> bytes:
    """A page of text after `n` bytes that belong to no PDF."""
    return (b"HTTP/1.1 200 OK " * (n // 16 + 1))[:n] + text_pdf(["After the junk comes the tide."])


def page_tree_loop() -> bytes:
    """A page tree that contains itself."""
    return _raw([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Pages /Kids [2 0 R] /Count 1 /Parent 2 0 R >>",
    ])


_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def _drawn(pages: Sequence[Callable[[Canvas], None]], **options: Any) -> bytes:
    """A file with one page a drawing."""
    out = BytesIO()
    canvas = Canvas(out, pagesize=A4, invariant=1, **options)
    for draw in pages:
        draw(canvas)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def _writer(page: str) -> Callable[[Canvas], None]:
    """Draws the text, line by line."""

    def draw(canvas: Canvas) -> None:
        text = canvas.beginText(20 * mm, 275 * mm)
        text.setFont("Helvetica", 10)
        text.textLines(page, trim=0)
        canvas.drawText(text)

    return draw


def _picture(canvas: Canvas) -> None:
    """Draw a picture of no text: the outline of a lock."""
    bitmap = Image.new("L", (400, 560), 255)
    ImageDraw.Draw(bitmap).rectangle((60, 120, 340, 440), outline=0, width=6)
    canvas.drawImage(ImageReader(bitmap), 20 * mm, 40 * mm, 170 * mm, 238 * mm)


def _show(text: str) -> bytes:
    """Content that shows one line."""
    return b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % text.encode("cp1252")


def _one_page(content: bytes, *, packed: bool = False) -> bytes:
    """A page with this content and a font named F1."""
    stream = content if packed else zlib.compress(content, 9)
    return _raw([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [5 0 R] /Count 1 >>",
        _FONT,
        _stream(stream, b"/Filter /FlateDecode "),
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>"
        ),
    ])


def _stream(content: bytes, entries: bytes = b"") -> bytes:
    """The body of a stream object."""
    return b"<< %s/Length %d >>\nstream\n%s\nendstream" % (entries, len(content), content)


def _raw(objects: Sequence[bytes]) -> bytes:
    """A file of these objects, numbered from 1; the first is the catalog."""
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(objects) + 1)
    return bytes(out) + b"startxref\n%d\n%%%%EOF\n" % start


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(handbook())
