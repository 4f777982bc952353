"""Markup: a plain string can never become an element or end an attribute."""

from __future__ import annotations

from dopkit.report.markup import Markup, join, number, tag, text


def test_text_is_escaped_once() -> None:
    assert text("<b> & \"'") == "&lt;b&gt; &amp; &quot;&#x27;"
    assert text(text("<b>")) == "&lt;b&gt;"
    assert text("a\x00b\u202ec\ud800\n") == "a?b?c?\n"  # nothing that steers a reader, nothing UTF-8 cannot hold


def test_tag() -> None:
    assert tag("td", "a<b", None, tag("i", "c"), class_="num", hidden=True, title='"') == (
        '<td class="num" hidden title="&quot;">a&lt;b<i>c</i></td>'
    )
    assert tag("meta", name="x") == '<meta name="x">'
    assert tag("a", href=None, tabindex=0, open=False) == '<a tabindex="0"></a>'
    assert tag("rect", x=1.26, stroke_width=-0.01) == '<rect x="1.3" stroke-width="0"></rect>'


def test_join_escapes_pieces_and_what_is_between() -> None:
    assert join(["<", None, Markup("<i>"), ""], "&") == "&lt;&amp;<i>"


def test_coordinates_are_short() -> None:
    assert [number(value) for value in (0.0, 12.0, 12.34, -0.04, 1234567.0)] == ["0", "12", "12.3", "0", "1234567"]
