"""A layout as a picture: who sits where, who attends to whom, which words bind what."""

import re
from collections.abc import Sequence
from itertools import accumulate, cycle, islice

from PIL import Image, ImageDraw

from lumosx_rt.drawing.contact_sheet import Spans, Words
from lumosx_rt.drawing.typesetting import (
    ALARM,
    FAINT,
    INK,
    PAPER,
    beside,
    centred,
    drawable,
    font_of,
    framed,
    paragraph,
    shortened,
    stack,
    text_line,
    text_width,
    wrapped,
)
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

HIDDEN = "#eceef1"  # who does not see whom


VIDEO = "#7c4a21"  # none of the hues of groups, and nothing like grey


LEAST_BLOCK = 17  # pixels, room for a line of text


GROUPS = ("#d1495b", "#2a7fb8", "#3c9d5d", "#c77d0a", "#8257b5", "#0f8b8d", "#b8477f", "#6b7f1d")


def layout_picture(
    layout: SceneLayout,
    words: Words | None = None,
    caption: str | None = None,
    spans: Spans | None = None,
) -> Image.Image:
    """A layout: its tokens in sequence, who attends to whom, what each reference is bound to.

    words: one for each reference, in the model's order. spans: for each reference the characters
    [start, stop) of the caption that it is bound to; without them its word is looked for in the
    caption. A reference without any is flagged. Raises LumosXError where these do not fit the
    layout or the caption.
    """
    words = [f"reference {i}" for i in range(1, layout.references + 1)] if words is None else words
    if caption is not None and spans is None:
        spans = [_occurrences(word, caption) for word in words]
    problems = []
    if len(words) != layout.references:
        problems.append(f"{len(words)} words for {layout.references} references")
    if spans is not None and len(spans) != layout.references:
        problems.append(f"{len(spans)} lists of spans for {layout.references} references")
    if spans is not None and caption is None:
        problems.append("spans without a caption")
    for start, stop in [span for group in spans or [] for span in group]:
        if not 0 <= start < stop <= len(caption or ""):
            problems.append(f"span {start} to {stop} is not in the caption")
    if problems:
        raise BadInput("layout picture: " + "; ".join(problems) + "; give those of one scene")

    words = [drawable(word) for word in words]
    colours = _colours(layout)
    matrix = [
        text_line("Who attends to whom", 17),
        text_line("queries down, keys across", 13, FAINT),
        _legend(layout, colours),
        _attention_matrix(layout, words, colours),
    ]
    details = [stack(matrix, 6)]
    if layout.references:
        table = _reference_table(layout, words, spans, colours)
        details.append(stack([text_line("References", 17), table], 10))
    body = beside(details, 40)
    bar = _sequence_bar(layout, words, colours, max(1180, body.width))
    parts = [
        text_line(f"Layout {layout.key}", 22),
        text_line(_count(layout), 14, FAINT),
        text_line("Tokens in sequence", 17),
        bar,
        body,
    ]
    if caption is not None:
        parts += [
            text_line("Caption", 17),
            _bound_caption(drawable(caption), spans or [], colours, bar.width),
        ]
    return framed(stack(parts, 12))


def _legend(layout: SceneLayout, colours: list[str]) -> Image.Image:
    """Return what the colours of the matrix mean."""
    entries = [(VIDEO, "video, seen"), (HIDDEN, "not seen")]
    if layout.references:
        entries.insert(1, (colours[0], "a reference, in its group's colour"))
    parts = []
    for colour, meaning in entries:
        swatch = Image.new("RGB", (16, 14), "#c3c8d0")
        ImageDraw.Draw(swatch).rectangle((1, 1, 14, 12), fill=colour)
        parts.append(beside([swatch, text_line(meaning, 13)], 6))
    return beside(parts, 18)


def _count(layout: SceneLayout) -> str:
    frames = f"{layout.video_frames} video frames and {layout.references} references"
    tokens = f"{layout.height} x {layout.width} = {layout.frame_tokens} tokens"
    return f"{frames} of {tokens}: {layout.tokens:,} tokens in all"


def _occurrences(word: str, caption: str) -> list[tuple[int, int]]:
    """Return where the word stands in the caption as whole words."""
    pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    return [match.span() for match in re.finditer(pattern, caption)] if word.strip() else []


def _colours(layout: SceneLayout) -> list[str]:
    """One colour for each reference: a hue for each group, lighter from picture to picture."""
    hues = islice(cycle(GROUPS), len(layout.groups))
    colours = []
    for hue, (start, stop) in zip(hues, layout.groups, strict=True):
        colours += [_mix(hue, "#ffffff", 0.45 * i / (stop - start)) for i in range(stop - start)]
    return colours


def _places(layout: SceneLayout) -> list[str]:
    """Return where each reference stands, in words."""
    places = [f"lone {i}" for i in range(1, layout.lone + 1)]
    for s, size in enumerate(layout.subjects, 1):
        places += [f"subject {s}, picture {i}" for i in range(1, size + 1)]
    return places


def _sequence_bar(layout: SceneLayout, words: Words, colours: list[str], width: int) -> Image.Image:
    """Return the groups along the sequence, to scale but for those too short for their names."""
    sizes = [layout.video_frames, *(stop - start for start, stop in layout.groups)]
    names = ["video", *(shortened(word, 110) for word in words[: layout.lone])]
    names += [f"subject {s}" for s in range(1, len(layout.subjects) + 1)]
    least = [max(map(text_width, name.split() or [""])) + 12 for name in names]
    least = [max(n, 24 * size) for n, size in zip(least, sizes, strict=True)]
    least[0] = 90
    edges = _edges(sizes, least, width)
    blocks = []
    for i, (size, name) in enumerate(zip(sizes, names, strict=True)):
        wide = edges[i + 1] - edges[i]
        block = Image.new("RGB", (wide - 3, 46), VIDEO)
        pen = ImageDraw.Draw(block)
        inner = [round(block.width * k / size) for k in range(size + 1)]
        for k in range(size):
            reference = layout.groups[i - 1][0] - layout.video_frames + k if i else 0
            box = (inner[k], 0, inner[k + 1] - (k < size - 1), 46)
            pen.rectangle((box[0], 0, box[2] - 1, 45), fill=colours[reference] if i else VIDEO)
            if k < size - 1:
                pen.rectangle((box[2], 0, box[2], 45), fill=PAPER)
            if i:
                centred(pen, box, str(reference + 1), 16, PAPER)
        if not i:
            plain = f"{size} frames" if block.width >= 100 else str(size)
            pen.rectangle((block.width / 2 - 40, 12, block.width / 2 + 40, 34), fill=VIDEO)
            centred(pen, (0, 0, block.width, 46), plain, 16, PAPER)
        blocks.append(stack([block, paragraph(name, 13, wide - 3, centred=True)], 4))
    return beside(blocks, 3)


def _attention_matrix(layout: SceneLayout, words: Words, colours: list[str]) -> Image.Image:
    """Queries down, keys across: one row and column for the video and for each reference."""
    image, edges = attention_blocks(layout, colours)
    labels = ["video", *(f"{i}   {shortened(word, 190)}" for i, word in enumerate(words, 1))]
    left = max(map(text_width, labels)) + 12
    page = Image.new("RGB", (left + image.width, 22 + image.height), PAPER)
    page.paste(image, (left, 22))
    pen = ImageDraw.Draw(page)
    for i, label in enumerate(labels):
        start, stop = edges[i], edges[i + 1]
        pen.text((0, 22 + (start + stop) / 2), label, INK, font_of(13), anchor="lm")
        centred(
            pen, (left + start, 0, left + stop, 20), str(i) if i else "video", 11 if i else 13, INK
        )
    return page


def attention_blocks(layout: SceneLayout, colours: Sequence[str]) -> tuple[Image.Image, list[int]]:
    """Return the bare matrix, and the pixels where its rows and columns begin and end.

    One block for the video and one for each reference, sides in proportion to their tokens but at
    least LEAST_BLOCK pixels. A block is HIDDEN where its queries do not see its keys.
    """
    sizes = [layout.video_frames, *[1] * layout.references]
    side = min(640, max(480, (LEAST_BLOCK + 1) * sum(sizes)))
    edges = _edges(sizes, [48, *[LEAST_BLOCK] * layout.references], side)
    first = [n * layout.frame_tokens for n in accumulate(sizes, initial=0)]
    image = Image.new("RGB", (edges[-1] + 1, edges[-1] + 1), "#c3c8d0")
    pen = ImageDraw.Draw(image)
    for row in range(len(sizes)):
        for column in range(len(sizes)):
            seen = any(
                q[0] <= first[row] < q[1] and k[0] <= first[column] < k[1]
                for q, k in layout.attention_ranges
            )
            hue = colours[column - 1] if column else VIDEO
            # the same block seen by another group is paler than by its own
            fill = hue if row and seen else _mix(hue, PAPER, 0.45) if seen else HIDDEN
            corner = edges[column] + 1, edges[row] + 1
            pen.rectangle((*corner, edges[column + 1] - 1, edges[row + 1] - 1), fill=fill)
    return image, edges


def _reference_table(
    layout: SceneLayout, words: Words, spans: Spans | None, colours: list[str]
) -> Image.Image:
    rows = []
    for i, (word, place) in enumerate(zip(words, _places(layout), strict=True)):
        start = (layout.video_frames + i) * layout.frame_tokens
        tokens = f"{place}: tokens {start:,} to {start + layout.frame_tokens - 1:,}"
        lines = [paragraph(word or "(no word)", 16, 450), paragraph(tokens, 13, 450, FAINT)]
        if spans is not None and spans[i]:
            times = f", {len(spans[i])} times" if len(spans[i]) > 1 else ""
            lines[1] = paragraph(f"{tokens}; bound in the caption{times}", 13, 450, FAINT)
        elif spans is not None:
            lines.append(paragraph("NOT BOUND: no match in the caption", 13, 450, ALARM))
        swatch = Image.new("RGB", (30, 24), colours[i])
        centred(ImageDraw.Draw(swatch), (0, 0, 30, 24), str(i + 1), 14, PAPER)
        rows.append(beside([swatch, stack(lines, 1)], 10))
    return stack(rows, 7)


def _bound_caption(caption: str, spans: Spans, colours: list[str], width: int) -> Image.Image:
    """Return the caption, wrapped; bound words on their colour, with their references' numbers
    above."""
    font, tag_font = font_of(18), font_of(12)
    bound: list[list[int]] = [[] for _ in caption]
    starts: dict[int, list[str]] = {}
    for i, group in enumerate(spans):
        for start, stop in group:
            starts.setdefault(start, []).append(str(i + 1))
            for at in range(start, stop):
                bound[at].append(i)
    stripes = max(map(len, bound), default=0)
    height = 15 + 24 + 4 * stripes + 6
    places = wrapped(caption, 18, width)
    image = Image.new(
        "RGB", (width, height * (1 + max((line for line, _ in places), default=0))), PAPER
    )
    pen = ImageDraw.Draw(image)
    tags_end = (-1, 0.0)  # line and pixel where the last number ends
    for at, (line, x) in enumerate(places):
        top, letter = line * height, caption[at]
        if letter.isspace() and places[at - 1][0] != line:
            continue
        right = x + font.getlength(letter)
        if bound[at]:
            pale = _mix(colours[bound[at][0]], PAPER, 0.72)
            pen.rectangle((x, top + 15, right, top + 38), fill=pale)
        for stripe, i in enumerate(bound[at]):
            base = top + 39 + 4 * stripe
            pen.rectangle((x, base, right, base + 2), fill=colours[i])
    for at, (line, x) in enumerate(places):
        top = line * height
        pen.text((x, top + 33), caption[at], INK, font, anchor="ls")
        if at in starts:
            tag = ", ".join(starts[at])
            x = max(x, tags_end[1] + 5) if tags_end[0] == line else x
            pen.text(
                (x, top + 12), tag, _mix(colours[bound[at][0]], INK, 0.3), tag_font, anchor="ls"
            )
            tags_end = line, x + tag_font.getlength(tag)
    return image


def _edges(sizes: Sequence[int], least: Sequence[int], total: int) -> list[int]:
    """Pixel edges of blocks in proportion to `sizes`, none below its `least`.

    What the small ones are given is taken from the others in proportion; `total` grows if it must.
    """
    total = max(total, sum(least))
    held: set[int] = set()
    while True:
        free = total - sum(least[i] for i in held)
        weight = sum(size for i, size in enumerate(sizes) if i not in held) or 1
        short = {i for i, size in enumerate(sizes) if size * free < least[i] * weight} - held
        if not short:
            break
        held |= short
    lengths = [least[i] if i in held else sizes[i] * free / weight for i in range(len(sizes))]
    return [round(edge) for edge in accumulate(lengths, initial=0.0)]


def _mix(a: str, b: str, share: float) -> str:
    channels = [(int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in channels)
