"""Good files give their text; bad ones give the error that tells what is wrong."""

import pytest

from orchestrator import errors
from orchestrator.documents.pdf import OpenPdf, inspect, read_pages
from orchestrator.documents.pdfium_text import PdfiumText
from orchestrator.domain import FlawedPage
from tests import pdfs


@pytest.fixture
def saved(tmp_path):
    """Writes bytes to a file and gives its path."""

    def save(data: bytes):
        path = tmp_path / "file.pdf"
        path.write_bytes(data)
        return path

    return save


def texts(path, **options):
    """All pages of the file, or those asked for."""
    pages = inspect(path, max_pages=100).pages
    options = {"first": 1, "last": pages, "max_chars_per_page": 100_000} | options
    return list(read_pages(path, **options))


def test_pages_come_in_order_and_are_numbered_from_one(saved):
    """Page n of the result is page n of the file."""
    pages = texts(saved(pdfs.text_pdf([f"This is sheet {n}." for n in range(1, 8)])))
    assert [(p.number, p.text) for p in pages] == [(n, f"This is sheet {n}.") for n in range(1, 8)]


def test_a_window_of_pages_keeps_its_numbers(saved):
    """Pages 3 to 5 are numbered 3 to 5."""
    path = saved(pdfs.text_pdf([f"This is sheet {n}." for n in range(1, 8)]))
    pages = texts(path, first=3, last=5)
    assert [(p.number, p.text) for p in pages] == [(n, f"This is sheet {n}.") for n in (3, 4, 5)]


def test_columns_are_read_one_after_the_other(saved):
    """The right column follows the left one, line by line in order."""
    text = texts(saved(pdfs.two_column()))[0].text
    lines = [*(f"Ebb line {n} " for n in range(1, 31)), *(f"Flood line {n} " for n in range(1, 31))]
    places = [text.index(line) for line in lines]
    assert places == sorted(places)


def test_table_cells_stay_in_reading_order(saved):
    """The cells of a row follow one another."""
    text = " ".join(texts(saved(pdfs.table()))[0].text.split())
    assert "Gate 3 21 percent 2003 Gate 4 28 percent 2004" in text


def test_an_empty_user_password_opens(saved):
    """A document that is encrypted without a password is read."""
    assert texts(saved(pdfs.encrypted_empty_user_password()))[0].text == (
        "The chart of the sound is secret."
    )


def test_scanned_pages_have_no_text_and_no_flaw(saved):
    """A picture of text gives an empty page: nothing was lost, nothing was there."""
    pages = texts(saved(pdfs.mixed(["Written."], 2)))
    assert [(type(p).__name__, p.text) for p in pages] == [
        ("Page", "Written."),
        ("Page", ""),
        ("Page", ""),
    ]


@pytest.mark.parametrize("junk", [10, 5000])
def test_junk_before_the_header_does_no_harm(saved, junk):
    """Bytes before the PDF's header are skipped, few or many."""
    page = texts(saved(pdfs.junk_prefixed(junk)))[0]
    assert page.text == "After the junk comes the tide."


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", errors.EmptyFile),
        (b"# Tides\n\nNo PDF at all.\n" * 50, errors.NotAPdf),
        (b"\x89PNG\r\n\x1a\n" + bytes(2000), errors.NotAPdf),
        (b"It ends in %%EOF but never was one.", errors.NotAPdf),
        (pdfs.encrypted("open sesame"), errors.EncryptedDocument),
        (pdfs.no_pages(), errors.NoPages),
        (pdfs.truncated(), errors.DamagedDocument),
        (pdfs.damaged(), errors.DamagedDocument),
        (pdfs.page_tree_loop(), errors.DamagedDocument),
        (pdfs.many_pages(101), errors.TooManyPages),
        (pdfs.many_pages(2000), errors.TooManyPages),
    ],
)
def test_each_unusable_file_has_its_error(saved, data, error):
    """The error's class says what is wrong, and its message says what to do."""
    with pytest.raises(error) as caught:
        inspect(saved(data), max_pages=100)
    assert type(caught.value) is error
    assert len(caught.value.message.split(". ")) > 1


def test_a_missing_file_is_the_stores_fault(tmp_path):
    """A file that is gone is no damaged PDF."""
    with pytest.raises(errors.StoreUnavailable):
        inspect(tmp_path / "gone.pdf", max_pages=100)


def test_as_many_pages_as_allowed_are_allowed(saved):
    """The limit itself is not over the limit."""
    assert inspect(saved(pdfs.many_pages(100)), max_pages=100).pages == 100


def test_a_long_page_is_cut_and_says_so(saved):
    """A page of megabytes stops at the limit, early, with its first characters kept."""
    page = texts(saved(pdfs.huge_text_page(400_000)), max_chars_per_page=2_000)[0]
    assert isinstance(page, FlawedPage)
    assert page.text.startswith("surge and ebb surge")
    assert 1_500 < len(page.text) <= 2_000
    assert "2,000 characters" in page.reason


def test_a_page_that_cannot_be_read_does_not_cost_the_others(saved):
    """A page nested too deep is empty and says so; no exception leaves the room."""
    page = texts(saved(pdfs.deep_nesting(50_000)))[0]
    assert isinstance(page, FlawedPage)
    assert page.text == ""
    assert page.reason == "Page 1 could not be read (RecursionError)."


def test_a_page_that_does_not_exist_is_flawed(saved):
    """Asking beyond the end gives a flawed page, not an error."""
    pages = texts(saved(pdfs.text_pdf(["one"])), last=2)
    assert isinstance(pages[1], FlawedPage)


def test_the_handbook_answers_its_questions_on_the_page_named(saved):
    """Each answer stands on its gold page and on no other."""
    pages = texts(saved(pdfs.handbook()))
    for question in pdfs.HANDBOOK_QUESTIONS:
        holders = [p.number for p in pages if question.answer in p.text.replace("\n", " ")]
        assert holders == [question.page], question


def test_the_same_pdf_is_made_every_time():
    """Samples are deterministic, so that a second upload of one is a duplicate."""
    for make in (pdfs.handbook, pdfs.two_column, pdfs.table, pdfs.image_only):
        assert make() == make()
    assert pdfs.encrypted("x") == pdfs.encrypted("x")


class TestTwoReaders:
    """PDFium reads the pages, and pypdf what PDFium does not."""

    @pytest.mark.parametrize("fast", [True, False])
    @pytest.mark.parametrize(
        "make", [pdfs.handbook, pdfs.two_column, pdfs.encrypted_empty_user_password]
    )
    def test_both_find_the_same_words(self, saved, make, fast):
        """In the same order, whichever reads."""
        words, others = (
            [page.text.split() for page in texts(saved(make()), fast=kind)] for kind in (fast, True)
        )
        assert words == others
        assert all(words)

    def test_pypdf_reads_where_pdfium_finds_nothing(self, saved, monkeypatch):
        """A page without text, one of unknown characters only, and a file that it cannot open."""
        path = saved(pdfs.text_pdf(["Ebb."]))
        for found in (None, "", " \r\n", "\ufffd" * 3 + "x"):
            monkeypatch.setattr(PdfiumText, "text", lambda *_, found=found, **__: found)
            assert [page.text for page in texts(path)] == ["Ebb."]
        monkeypatch.setattr(PdfiumText, "open", lambda *_, **__: None)
        assert [page.text for page in texts(path)] == ["Ebb."]

    def test_without_native_code_none_is_called(self, saved, monkeypatch):
        """The second reading of a page that cost a worker."""

        def never(*_, **__):
            raise AssertionError("PDFium was asked")

        monkeypatch.setattr(PdfiumText, "open", never)
        assert [page.text for page in texts(saved(pdfs.text_pdf(["Ebb."])), fast=False)] == ["Ebb."]

    def test_a_file_with_other_pages_for_pdfium_is_pypdfs(self):
        """Page numbers are what citations point to."""
        data = pdfs.text_pdf(["one", "two"])
        assert PdfiumText.open(data, pages=3) is None
        assert PdfiumText.open(b"%PDF-1.7 nothing else", pages=1) is None
        both = PdfiumText.open(data, pages=2)
        assert both is not None
        assert both.text(2, max_chars=100) == "two"
        assert both.text(2, max_chars=2) == "tw"
        assert both.text(3, max_chars=100) is None
        both.close()


def boxes_of(tmp_path, data, page, start_of, end_of):
    """The boxes of the passage from the first to the second text on a page."""
    path = tmp_path / "boxes.pdf"
    path.write_bytes(data)
    pdf = OpenPdf.open(path, max_pages=100)
    (read,) = pdf.read_pages(first=page, last=page, max_chars_per_page=100_000)
    start = read.text.index(start_of)
    end = read.text.index(end_of, start) + len(end_of)
    found = pdf.boxes(page, read.text[start:end], near=start / len(read.text))
    pdf.close()
    return found


def test_a_passage_is_found_on_its_page(tmp_path):
    """One box a line, inside the page, from top to bottom."""
    lines = "\n".join(f"Line {n} speaks of gate number {n}." for n in range(1, 9))
    found = boxes_of(tmp_path, pdfs.text_pdf(["First page.", lines]), 2, "Line 3", "number 5.")
    assert len(found) == 3
    assert all(
        0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in found
    )
    tops = [top for _, top, _, _ in found]
    assert tops == sorted(tops)
    assert max(tops) - min(tops) < 0.2


def test_of_equal_passages_the_right_one_is_marked(tmp_path):
    """The same words twice on a page: the nearer one is meant."""
    lines = "\n".join(["The tide is out."] * 2 + [f"Line {n}." for n in range(20)])
    lines += "\nThe tide is out."
    data = pdfs.text_pdf([lines])
    path = tmp_path / "twice.pdf"
    path.write_bytes(data)
    pdf = OpenPdf.open(path, max_pages=9)
    first = pdf.boxes(1, "The tide is out.", near=0.0)
    last = pdf.boxes(1, "The tide is out.", near=0.9)
    assert len(first) == len(last) == 1
    assert first[0][1] < last[0][1]


def test_what_is_not_there_is_not_marked(tmp_path):
    """Rather nothing than the wrong place; a page that does not exist has nothing, too."""
    path = tmp_path / "a.pdf"
    path.write_bytes(pdfs.text_pdf(["The tide is out."]))
    pdf = OpenPdf.open(path, max_pages=9)
    assert pdf.boxes(1, "The tide is in.", near=0) == []
    assert pdf.boxes(1, "  ", near=0) == []
    assert pdf.boxes(7, "The tide is out.", near=0) == []
