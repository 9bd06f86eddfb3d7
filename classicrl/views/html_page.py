"""Pages that are whole in themselves: the style, the pictures and the curves are in the file.

Every function returns HTML in which all text that it was given is escaped; what is called *html* is
put in as it stands. The pages run no script and load nothing, which their policy also says.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from classicrl.errors import UserError
from classicrl.views.line_chart import Line, legend, line_chart

MAX_PICTURE_BYTES = 16 * 2**20
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_WIDE = 600  # of a chart
_KINDS = {"GIF": "image/gif", "PNG": "image/png"}


class Picture(NamedTuple):
    """A GIF or a PNG, as data URIs.

    Attributes:
        uri: of the whole.
        still: of its first frame, if it moves; for readers who asked for less motion.
        width, height: in pixels.
    """

    uri: str
    still: str | None
    width: int
    height: int


def read_picture(path: Path) -> Picture:
    """A picture that is looked at before it is put into a page.

    Raises:
        UserError: it is missing, damaged, above 16 MiB, or neither a GIF nor a PNG.
    """
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise UserError(f"{path.name} is larger than {MAX_PICTURE_BYTES >> 20} MiB")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind = _KINDS.get(image.format or "")
            width, height = image.size
            still = None
            moves = getattr(image, "n_frames", 1) > 1
            image.load()
            if moves:
                first = io.BytesIO()
                image.convert("RGB").save(first, "PNG")
                still = _data_uri("image/png", first.getvalue())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} cannot be read as a picture ({error})") from error
    if kind is None:
        raise UserError(f"{path.name} is neither a GIF nor a PNG")
    return Picture(_data_uri(kind, data), still, width, height)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def page(
    title: str,
    lead: str,
    sections_html: Iterable[str],
    *,
    over: str = "",
    figures: Sequence[tuple[str, str]] = (),
    footer: str = "",
) -> str:
    """The page.

    Args:
        title: its name and first heading.
        lead: a sentence or two under it.
        sections_html: of :func:`section`.
        over: a few words above the heading.
        figures: names and values, shown large.
        footer: the last line.
    """
    style = resources.files("classicrl.views").joinpath("report.css").read_text("utf-8")
    large = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures
    )
    large = f'<dl class="figures">{large}</dl>' if large else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n<header>\n"
        f'<p class="over">{escape(over)}</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="lead">{escape(lead)}</p>\n{large}\n</header>\n'
        + "\n".join(sections_html)
        + f"\n<footer><p>{escape(footer)}</p></footer>\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts_html: str, kind: str = "") -> str:
    """A card with a heading; ``kind`` is a class of the style, such as ``notes``."""
    name = f' class="{escape(kind)}"' if kind else ""
    return f"<section{name}>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts_html) + "\n</section>"


def subheading(text: str) -> str:
    """Within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    """Of plain words."""
    return f"<p>{escape(text)}</p>"


def items(lines: Iterable[str]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def code(text: str) -> str:
    """A command."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def folded(summary: str, *parts_html: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts_html)}</details>"


def group(kind: str, parts_html: Iterable[str]) -> str:
    """Parts beside one another: ``multiples``, ``beside`` or ``pictures`` of the style."""
    return f'<div class="{escape(kind)}">{"".join(parts_html)}</div>'


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> str:
    """Cells of text; the first of each row names it.

    Args:
        caption: what it shows.
        header: of each column.
        rows: as many cells each.
        numbers: all columns but the first are aligned to the right.
    """
    kind = ' class="number"' if numbers else ""
    head = "".join(
        f'<th scope="col"{kind if i else ""}>{escape(name)}</th>' for i, name in enumerate(header)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    size: tuple[int, int] = (680, 300),
    y_range: tuple[float, float] | None = None,
) -> str:
    """A figure of curves, its legend above where there are several; see :func:`line_chart`."""
    names = {line.name for line in lines}
    above = legend(lines) if len(names) > 1 else ""
    drawn = line_chart(lines, title=title, x_label=x_label, size=size, y_range=y_range)
    if size[0] > _WIDE:  # on a small screen it is moved under the finger, and stays legible
        inside = f'class="scroll wide" tabindex="0" role="group" aria-label="{escape(title)}"'
        drawn = f"<div {inside}>{drawn}</div>"
    return f"<figure><figcaption>{escape(title)}</figcaption>{above}{drawn}</figure>"


def picture(shown: Picture, alt: str, caption: str) -> str:
    """A figure of a picture. One that moves stands still for who asked for less motion, and can be
    folded away."""
    kind = ' class="pixels"' if shown.width < 320 else ""
    image = (
        f'<img src="{shown.uri}" alt="{escape(alt)}" width="{shown.width}" '
        f'height="{shown.height}"{kind}>'
    )
    if shown.still is not None:
        reduced = f'media="(prefers-reduced-motion: reduce)" srcset="{shown.still}"'
        image = f"<picture><source {reduced}>{image}</picture>"
        image = f"<details open><summary>Animation</summary>{image}</details>"
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
