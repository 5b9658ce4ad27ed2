import re

import pytest

from embedding_assets.sources.formats.html import _INLINE, _LINES, _TABLE, _UNSEEN, BrokenHtmlError, html_to_text


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
        ("<body><svg><title>Menu icon</title></svg><h1>H</h1>", "H"),
        ("<svg><g><title>Icon</title></g></svg><title>T</title>", "T"),
        ("<svg><title>Icon</title></svg>x", None),
        ("<title></title><title>Second</title>", "Second"),
        ("<h1><img src=logo.png></h1><h1>H</h1>", "H"),
        ("<h1 hidden>no</h1><h1>H<script>no</script></h1>", "H"),
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
        "<iframe><p>no</p></iframe>",
        "<p hidden=hidden>no</p>",
        "<div hidden><div role=tabpanel>no</div></div>",
        "<div role=tablist hidden>no</div>",
        "<svg><desc>no</desc></svg>",
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


@pytest.mark.parametrize(
    "markup",
    [
        "<div role=tabpanel hidden>there</div>",
        "<div role=TabPanel style='display: none'>there</div>",
        "<div hidden=until-found>there</div>",
        "<button aria-controls='menu panel'>open</button><div id=panel hidden>there</div>",
        "<div id=panel hidden>there</div><button aria-controls=panel>open</button>",
        "<details><summary>s</summary>there</details>",
        "<dialog>there</dialog>",
        "<template shadowrootmode=open>there</template>",
        "<body hidden>there",
        "<html style='display:none'>there",
        "<p style='color: red'>there",
        "<ruby>x<rp>(</rp><rt>there</rt></ruby>",
    ],
)
def test_hidden_text_that_a_reader_can_open_is_kept(markup: str) -> None:
    assert "there" in text(markup)


# https://html.spec.whatwg.org/multipage/indices.html#elements-3, without those that have no text of their own or
# whose text is not shown; and the obsolete ones that browsers still draw as blocks.
SEPARATE = """address article aside audio blockquote button canvas caption center dd details dialog dir div dl dt
fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr input label legend li listing main menu meter
nav object ol optgroup option output p pre progress search section select summary table tbody td textarea tfoot th thead
tr ul video xmp my-element"""


@pytest.mark.parametrize("tag", SEPARATE.split())
def test_what_is_no_phrase_of_a_line_stands_apart_from_the_words_around_it(tag: str) -> None:
    assert text(f"one<{tag}>two</{tag}>three").replace("|", " ").split()[0] == "one"
    assert re.findall(r"\w+", text(f"<{tag}>one</{tag}><{tag}>two</{tag}>")) == ["one", "two"]


PHRASES = "a abbr b cite code del em i ins kbd mark q s samp small span strong sub sup u"


@pytest.mark.parametrize("tag", PHRASES.split())
def test_phrases_do_not_part_a_word(tag: str) -> None:
    assert text(f"un<{tag}>break</{tag}>able<wbr>ness").replace('"', "") == "unbreakableness"


def test_every_element_has_one_place_in_the_layout() -> None:
    assert not _INLINE & _UNSEEN
    assert not (_INLINE | _UNSEEN) & (_TABLE | set(_LINES))
    assert not _TABLE & set(_LINES)


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<table><tr><td>Price</td>12 EUR a month</tr></table>", "Price | 12 EUR a month"),
        ("<table><tr><td>Term</td><td>1 year</td>, then monthly</tr></table>", "Term | 1 year | , then monthly"),
        ("<table>before<tr>row<td>cell</table>after", "before\nrow cell\nafter"),
        ("<table><tr><td><p>a<p>b<td><div>c</div></table>", "a\n\nb | c"),
        ("<table><tr><td><td>b<td><td>d</table>", "| b | | d"),
        ("<table><tr><td>a<td><tr><td>b</table>", "a\nb"),
        ("<table><tr><td>a<td><table><tr><td>b<td>c</table><td>d</table>", "a\nb | c | d"),
        ("<table><caption>C</caption><thead><tr><th>h<tbody><tr><td>a<tfoot><tr><td>f</table>", "C\nh\na\nf"),
        ("<ol start=5><li>a<li value=9>b<li value=²>c<li value=99999999999>d</ol>", "5. a\n9. b\n10. c\n11. d"),
        ("<ul><li><p>a</p><ul><li>b</ul><li></ul>c", "* a\n\n+ b\nc"),
        ("<pre>\na\n\n\n<b>b</b>\n  c\n</pre>d", "a\n\n\nb\n  c\nd"),
        ("a<br><br><br>b<br><div>c</div>d", "a\n\nb\nc\nd"),
        ("say <q>hi</q> now", 'say "hi" now'),
        ("<select><option>Basic<option>Professional</select>", "Basic Professional"),
        ("a<!-- c -->b<?php c ?>c", "abc"),
        ("10&nbsp;EUR", "10 EUR"),
    ],
)
def test_text_beside_cells_lists_and_lines(markup: str, expected: str) -> None:
    assert text(markup) == expected
