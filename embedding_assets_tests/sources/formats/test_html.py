import time

import pytest

from embedding_assets.sources.formats.html import MAX_HTML_BYTES, BrokenHtmlError, html_to_text


def text(markup: str) -> str:
    return html_to_text(markup)[0]


def test_a_page_reads_as_a_person_would_read_it() -> None:
    page = """<!DOCTYPE html><html><head><title> The
        title </title><style>p { color: red }</style></head><body>
        <h1>Heading</h1><p>One <b>bold</b> word.<br>Next line.</p>
        <ul><li>first<li>second<ol><li>nested</ol></ul>
        <table><tr><th>key</th><th>value</th></tr><tr><td>a</td><td><i>1</i></td></tr></table>
        <section>Section</section><dl><dt>term<dd>meaning</dl><pre>x =  1
  y</pre></body></html>"""
    assert html_to_text(page) == (
        "Heading\n\nOne bold word.\nNext line.\n\n* first\n* second\n1. nested\nkey | value\na | 1\n"
        "Section\nterm\nmeaning\nx =  1\n  y",
        "The title",
    )


@pytest.mark.parametrize(
    ("markup", "title"),
    [
        ("<title>T</title><h1>H</h1>", "T"),
        ("<h1>H <i>i</i></h1>", "H i"),
        ("<title> </title><h1>H</h1>", "H"),
        ("x", None),
    ],
)
def test_the_title_is_the_pages_or_its_first_heading(markup: str, title: str | None) -> None:
    assert html_to_text(markup)[1] == title


@pytest.mark.parametrize(
    "hidden",
    [
        "<script>alert('no')</script>",
        "<style>.no { }</style>",
        "<template>no</template>",
        "<noscript>no</noscript>",
        "<p hidden>no</p>",
        '<div style="color: red; DISPLAY : none">no<p>no</div>',
        "<!-- no -->",
        "<?php echo 'no' ?>",
        "<!DOCTYPE x [<!ENTITY no 'no'>]>",
    ],
)
def test_what_the_reader_does_not_see_is_left_out_and_what_follows_it_stays(hidden: str) -> None:
    found = text(f"<p>before</p>{hidden}after")
    assert "no" not in found
    assert found.startswith("before")
    assert found.endswith("after")


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("", ""),
        (" \n", ""),
        ("<!-- -->", ""),
        ("<p", ""),
        ("</p></div>", ""),
        ("<p>a</b></i><p>b", "a\n\nb"),
        ("<b><p>a</b>b</p>c", "ab\n\nc"),
        ("a < b && c > d", "a < b && c > d"),
        ("<p>&amp;&#233;&eacute;&bogus;</p>", "&éé&bogus;"),
        ("<p>a<script>unclosed", "a"),
        ('<p title="unclosed>a', ""),
        ("<meta charset=latin-1><p>é", "é"),
        ('<?xml version="1.0" encoding="latin-1"?><html><p>é', "é"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><p>&x;', "]>\n\n&x;"),
    ],
)
def test_broken_markup_gives_the_text_that_is_there(markup: str, expected: str) -> None:
    assert text(markup) == expected


def test_character_references_bring_in_neither_nul_nor_surrogates() -> None:
    found = text("<p>&#0;&#xD800;&#x110000;</p>")
    assert "\0" not in found
    found.encode()


def test_markup_nested_so_deep_that_text_would_be_lost_is_refused() -> None:
    with pytest.raises(BrokenHtmlError, match="depth"):
        html_to_text("<p>kept</p>" + "<div>" * 1_000 + "lost")


@pytest.mark.parametrize(
    "page",
    [
        "<table>" + "<tr><td>a" * 2_000 + "<tr><td>" + "x" * 100_000,
        "<ul><li>" * 100 + "<br>x" * 20_000,
        '<p style="padding-left: 99999999em; margin-top: 99999999em">x',
        "<table><td colspan=99999999 rowspan=99999999>x<td>y",
        "<ol start=99999999999999999999><li value=9999>x",
        "<table><tr><td>" * 80 + "x",
        "<q>" * 200 + "x",
    ],
)
def test_text_does_not_outgrow_its_markup(page: str) -> None:
    """Aligned columns made 200 MB of the first one, style paddings a terabyte of the third."""
    assert len(text(page)) <= len(page) + 10


def test_a_megabyte_of_elements_is_read_in_linear_time() -> None:
    page = "<p>x" * 250_000
    started = time.process_time()
    assert len(text(page)) < MAX_HTML_BYTES
    assert time.process_time() - started < 15  # 1 s on a calm machine; squares would take minutes
