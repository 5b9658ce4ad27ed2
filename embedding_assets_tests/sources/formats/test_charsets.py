import codecs

import pytest

from embedding_assets.sources.formats.charsets import _CODECS, _LATIN, page_charset


@pytest.mark.parametrize(
    ("page", "charset"),
    [
        (b"<p>text", "utf-8"),
        (b"<meta charset=iso-8859-1>", "cp1252"),
        (b"<META CHARSET = 'Latin1' >", "cp1252"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">', "cp1252"),
        (b"<meta content='text/html;charset=\"koi8-r\"' http-equiv=content-type />", "koi8-r"),
        (b"<meta name=description content='charset=gbk'><meta charset=gb2312>", "gb18030"),
        (b'<?xml version="1.0" encoding="iso-8859-2"?><html>', "iso8859-2"),
        (b'\n<?xml version="1.0" encoding="utf-8"?><meta charset=shift_jis>', "cp932"),
        (b"<!-- <meta charset=gbk> --><meta charset=euc-kr>", "cp949"),
        (b"<!-- <meta charset=gbk>", "utf-8"),
        (b"<meta charset=utf-16>", "utf-8"),
        (b"<meta charset=rot13>", "utf-8"),
        (b"<meta charset=utf-7>", "utf-8"),
        (b"<meta charset=no-such><meta charset=big5>", "big5hkscs"),
        (codecs.BOM_UTF8 + b"<meta charset=gbk>", "utf-8"),
        (codecs.BOM_UTF16_LE + "<meta charset=gbk>".encode("utf-16-le"), "utf-16"),
        (b" " * 100_000 + b"<meta charset=gbk>", "utf-8"),
    ],
)
def test_a_page_is_in_the_charset_that_a_browser_would_read_it_in(page: bytes, charset: str) -> None:
    assert page_charset(page) == charset


@pytest.mark.parametrize("label", ["iso-8859-1", "latin1", "windows-1252", "iso-8859-15", "iso-8859-2", "us-ascii"])
def test_a_stale_declaration_gives_way_to_text_that_is_utf_8(label: str) -> None:
    meta = f"<meta charset={label}><p>"

    assert page_charset((meta + "Größe – 12 €").encode()) == "utf-8"
    assert page_charset((meta + "plain").encode()) == page_charset(meta.encode()) != "utf-8"


@pytest.mark.parametrize(
    ("label", "text", "charset"),
    [
        ("iso-8859-1", "Größe".encode("latin-1"), "cp1252"),
        ("windows-1252", "Größe – 12 €".encode("cp1252"), "cp1252"),
        ("latin1", "Größe".encode() + "Größe".encode("latin-1"), "cp1252"),  # both: the declaration is believed
        ("tis-620", "ยก".encode("cp874"), "cp874"),  # happens to be UTF-8 as well
        ("x-mac-roman", "L’État".encode("mac-roman"), "mac-roman"),
    ],
)
def test_real_text_in_a_declared_charset_is_read_in_it(label: str, text: bytes, charset: str) -> None:
    assert page_charset(f"<meta charset={label}><p>".encode() + text) == charset


def test_every_charset_of_the_table_can_be_read() -> None:
    for codec in set(_CODECS.values()):
        codecs.lookup(codec)
    assert len(_CODECS) > 200
    assert set(_CODECS.values()) >= _LATIN
    assert all(label == label.lower() for label in _CODECS)
