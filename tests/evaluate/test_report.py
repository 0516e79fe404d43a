import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fmct.errors import ArtefactError
from fmct.evaluate.report import (
    NOT_A_DEVICE,
    Facts,
    Figures,
    Picture,
    Section,
    Table,
    Text,
    probe_blocks,
    render,
    write_report,
)
from fmct.metrics.intervals import Interval
from fmct.probes.comparison import ProbeReport, Row

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
REPORT = ProbeReport(
    "dense",
    "AUROC",
    [
        Row("encoder", Interval(0.78, 0.7, 0.86, 12, "t")),
        Row("random", Interval(0.7, 0.6, 0.8, 12, "t"), Interval(-0.08, -0.12, -0.04, 12, "t")),
    ],
    {},
    ["left out: <p1>."],
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Checker(HTMLParser):
    """Follows tags: they have to nest, and collects what was used."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    blocks = [
        Text("Lead & more", "lead"),
        Figures([("0.78", "AUROC")]),
        Picture(PIXEL, "A caption", 'alt "quoted"'),
        *probe_blocks(REPORT),
        Facts({"encoder": "ViT", "hash": "a" * 64}),
        Table(["reason", "scans"], [["<script>alert(1)</script>", "3"]]),
    ]
    return render("Title <b>", [Section("First", blocks), Section("Empty")], subtitle="Sub")


def test_page_is_well_formed_and_self_contained(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    used = {tag for tag, _ in checker.tags}
    assert not used & {"script", "link", "iframe", "object", "embed"}
    for _, attributes in checker.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\(|@import|https?://", page)
    anchors = {a["href"] for tag, a in checker.tags if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in checker.tags if tag == "section"}


def test_text_cannot_become_markup(page: str) -> None:
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<title>Title &lt;b&gt;</title>" in page
    assert 'alt="alt &quot;quoted&quot;"' in page


def test_page_says_what_it_is_not(page: str) -> None:
    assert NOT_A_DEVICE in page


def test_probe_table_has_every_number(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    for text in ("0.780", "[0.700, 0.860]", "−0.080", "[−0.120, −0.040]", "Left out: <p1>."):
        assert text in checker.text, text
    assert sum(a.get("class") == "own" for tag, a in checker.tags if tag == "tr") == 1


def test_pictures_are_inside_the_page(page: str) -> None:
    found = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert found is not None
    assert base64.b64decode(found[1]) == PIXEL


def test_report_is_written_whole(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", "T", [Section("S", [Text("plain")])])
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", "T", [])
