"""One self-contained HTML page: text, tables and pictures, no script, nothing fetched; for screens, phones, paper."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmct import __version__
from fmct.artefacts import write_text
from fmct.errors import ArtefactError
from fmct.probes.comparison import ProbeReport, signed

NOT_A_DEVICE = "Not a medical device: for research only, not for diagnosis or treatment."


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is `plain`, `lead` (larger, at the top of a section) or `note` (a remark in a frame)."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Picture:
    """A PNG with a caption. alt: what it shows, for those who cannot see it."""

    png: bytes
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A table. Cells that look like numbers are set right, in figures of one width. emphasis: row numbers in bold."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasis: Sequence[int] = ()


@dataclass(frozen=True)
class Facts:
    """Names and values, two columns."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """A few numbers that matter, large: (value, what it is)."""

    figures: Sequence[tuple[str, str]]


Block = Text | Picture | Table | Facts | Figures


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def write_report(path: str | Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> Path:
    """Write the page to `path`, atomically, and return the path. Raises ArtefactError when it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, render(title, sections, subtitle=subtitle))
    except OSError as error:
        raise ArtefactError(f"{path}: the report cannot be written ({error.strerror}).") from None
    return path


def render(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return the page as HTML. Every text is escaped: nothing in it can become markup."""
    parts = []
    for number, section in enumerate(sections, start=1):
        body = "\n".join(_BLOCKS[type(block)](block) for block in section.blocks)
        parts.append(f'<section id="s{number}"><h2>{_text(section.title)}</h2>\n{body}\n</section>')
    links = "".join(f'<li><a href="#s{n}">{_text(s.title)}</a></li>' for n, s in enumerate(sections, start=1))
    head = f'<p class="subtitle">{_text(subtitle)}</p>' if subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="brand">fmct</p><h1>{_text(title)}</h1>{head}\n<nav><ol>{links}</ol></nav></header>\n'
        + "\n".join(parts)
        + f"\n<footer><p>{NOT_A_DEVICE}</p><p>Made by fmct {_text(__version__)}.</p></footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def probe_blocks(report: ProbeReport) -> list[Block]:
    """Return a probe's table and notes."""
    rows = [[row.name, _score(row.score), signed(row.gain) if row.gain else "–"] for row in report.rows]
    first = [number for number, row in enumerate(report.rows) if row.gain is None]
    table = Table(
        ["", report.metric, "encoder minus this"],
        rows,
        "In brackets: 95 % intervals over patients; the last column is paired by patient.",
        first,
    )
    return [table, *(Text(note[:1].upper() + note[1:], "note") for note in report.notes)]


def _score(score: Any) -> str:
    """Return an interval without its count, which the caption or a fact gives."""
    return str(score).replace(f", n = {score.n}", "")


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _paragraph(block: Text) -> str:
    return f'<p class="{_text(block.kind)}">{_text(block.text)}</p>'


def _picture(block: Picture) -> str:
    data = base64.b64encode(block.png).decode("ascii")
    return (
        f'<figure><div class="wide"><img alt="{_text(block.alt)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{_text(block.caption)}</figcaption></figure>"
    )


def _table(block: Table) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in block.header)
    lines = []
    for number, row in enumerate(block.rows):
        cells = "".join(_cell(cell, place) for place, cell in enumerate(row))
        lines.append(f'<tr class="own">{cells}</tr>' if number in block.emphasis else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    caption = f"<caption>{_text(block.caption)}</caption>" if block.caption else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(cell: str, place: int) -> str:
    if place == 0:
        return f'<th scope="row">{_text(cell)}</th>'
    number = cell.lstrip("+-−–.")[:1].isdigit() or cell in ("–", "n/a")
    if not number:
        return f"<td>{_text(cell)}</td>"
    # A minus sign reads better than a hyphen; a narrow screen may break between an estimate and its interval only.
    value, bracket, rest = re.sub(r"-(?=\d)", "−", cell).partition(" [")
    interval = f" <span>[{_text(rest)}</span>" if bracket else ""
    return f'<td class="number"><span>{_text(value)}</span>{interval}</td>'


def _facts(block: Facts) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in block.facts.items())
    return f"<dl>{rows}</dl>"


def _figures(block: Figures) -> str:
    items = "".join(f"<li><b>{_text(value)}</b><span>{_text(name)}</span></li>" for value, name in block.figures)
    return f'<ul class="figures">{items}</ul>'


_BLOCKS: dict[type, Any] = {Text: _paragraph, Picture: _picture, Table: _table, Facts: _facts, Figures: _figures}
_STYLE = """
:root{--ink:#1b1f24;--grey:#59626d;--line:#dfe3e8;--soft:#f5f7f9;--accent:#0072b2}
*{box-sizing:border-box}
html{color-scheme:light;-webkit-text-size-adjust:100%}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.58 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"DejaVu Sans",sans-serif;font-variant-numeric:lining-nums}
main{max-width:50rem;margin:0 auto;padding:2.75rem 1.25rem 3rem}
header{border-bottom:1px solid var(--line);padding-bottom:1.25rem;margin-bottom:.5rem}
.brand{margin:0 0 .5rem;color:var(--accent);font-weight:650;letter-spacing:.04em}
h1{font-size:1.95rem;line-height:1.2;margin:0;letter-spacing:-.015em;text-wrap:balance}
.subtitle{margin:.55rem 0 0;color:var(--grey);font-size:1.05rem;max-width:40rem}
nav ol{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:1rem 0 0;padding:0;font-size:.9rem}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
section{margin-top:2.6rem}
h2{font-size:1.28rem;line-height:1.3;margin:0 0 .7rem;letter-spacing:-.01em}
p{margin:.7rem 0;max-width:42rem;hyphens:auto;overflow-wrap:break-word}
p.lead{font-size:1.1rem;line-height:1.5}
p.note{border-left:3px solid var(--line);padding:.1rem 0 .1rem .8rem;color:var(--grey);font-size:.92rem}
figure{margin:1.3rem 0}figure .wide{margin:0}
img{display:block;width:100%;height:auto}
figcaption,caption{color:var(--grey);font-size:.88rem;line-height:1.45;text-align:left}
figcaption{margin-top:.5rem;max-width:42rem}
caption{caption-side:bottom;padding-top:.6rem}
.wide{overflow-x:auto;margin:1.1rem 0}
table{border-collapse:collapse;width:100%;font-size:.94rem}
th,td{padding:.42rem .9rem .42rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{font-weight:600;font-size:.86rem;color:var(--grey);border-bottom:1.5px solid var(--ink);vertical-align:bottom}
tbody th{font-weight:400}
td.number{font-variant-numeric:tabular-nums}td.number span{white-space:nowrap}
tr.own th,tr.own td{font-weight:650}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.3rem 1.4rem;margin:1rem 0;font-size:.94rem}
dt{color:var(--grey)}dd{margin:0;overflow-wrap:anywhere}
.figures{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.9rem;
margin:1.2rem 0;padding:0}
.figures li{background:var(--soft);border-radius:.5rem;padding:.8rem 1rem}
.figures b{display:block;font-size:1.5rem;line-height:1.25;font-weight:650;letter-spacing:-.01em;
font-variant-numeric:tabular-nums}
.figures span{color:var(--grey);font-size:.88rem;line-height:1.35;display:block;margin-top:.15rem}
footer{margin-top:3.2rem;border-top:1px solid var(--line);padding-top:.9rem;color:var(--grey);font-size:.88rem}
footer p{margin:.2rem 0}
@media(max-width:34rem){main{padding:1.6rem 1rem 2rem}h1{font-size:1.6rem}dl{grid-template-columns:1fr;gap:.1rem}
dd{margin-bottom:.5rem}img{min-width:33rem}table{font-size:.86rem}th,td{padding-right:.6rem}}
@media print{@page{margin:16mm}body{font-size:10.5pt}main{max-width:none;padding:0}nav{display:none}
section{break-inside:auto}figure,table,.figures{break-inside:avoid}h2{break-after:avoid}a{color:inherit}}
"""
