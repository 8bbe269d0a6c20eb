"""Judgements: compare one figure, or the whole picture, with one word of a caption."""

from app.evaluation.facts.figures import Figure
from app.evaluation.facts.palette import RGB, is_achromatic, judge_colour
from app.evaluation.facts.picture import Picture
from app.evaluation.facts.verdict import Verdict, choose_best, judge_number
from data_pipeline.svg import GRID

# longer side of a figure, as a share of the page: the bounds of each word, and those of `perhaps`
SIZES = {
    "small": (0.0, 0.0, 0.175, 0.21),
    "medium": (0.175, 0.21, 0.29, 0.34),
    "large": (0.29, 0.34, 9.0, 9.0),
}
DOT = 0.18, 0.25  # largest side of a dot, as a share of the page: sure, perhaps
# pen widths (units): the bounds of each word, and those of `perhaps`
PENS = {
    "thin": (0.0, 0.0, 10.0, 12.5),
    "light": (8.5, 10.0, 14.0, 16.0),
    "medium": (12.0, 13.5, 20.0, 24.0),
    "bold": (17.0, 20.0, 32.0, 40.0),
}
OUTLINES = 26.0, 34.0  # mean width of the paint of line art: sure, perhaps
MIN_COLOUR = 0.002, 0.007  # share of the painted area of a colour that a caption may name
SOLID_SHAPES = {"circle", "ellipse", "square", "rectangle", "triangle", "diamond", "star"}
SOLID = 2.2  # width of a solid figure, in pen widths of the outlines beside it
SIDE = 0.03  # distance from the middle of the page or from another figure: perhaps below
CENTRE = 0.08, 0.16  # distance from the middle, as a share of the page: sure, perhaps


def judge_range(value: float, bounds: tuple[float, float, float, float]) -> Verdict:
    """Return `right` inside the inner bounds, `cannot_tell` inside the outer ones."""
    outer_low, low, high, outer_high = bounds
    if low <= value <= high:
        return "right"
    return "cannot_tell" if outer_low <= value <= outer_high else "wrong"


def judge_shape(figure: Figure, shape: str, picture: Picture) -> Verdict:
    """Return whether a figure may be called by the shape's name."""
    shapes = figure.shapes
    if shape == "ring":
        if figure.fills and figure.pens and "circle" in shapes:
            return "cannot_tell"
        return shapes.get("circle", "wrong") if figure.is_outlined else "wrong"
    if shape == "dot":
        is_small = judge_range(figure.extent / GRID, (0.0, 0.0, *DOT))
        return min_verdict(is_small, shapes.get("circle", "wrong"))

    verdict = shapes.get(shape, "wrong")
    if shape == "circle" and figure.is_outlined and not is_line_art(picture):
        return "wrong"  # beside solid figures, a circle in outlines is a ring
    return verdict


def min_verdict(one: Verdict, other: Verdict) -> Verdict:
    """Return the worse of two verdicts."""
    return max(one, other, key=("right", "cannot_tell", "wrong").index)


def is_line_art(picture: Picture) -> bool:
    """Return whether no figure is solid: dots and lines as wide as the pen are not."""
    pen = max((figure.pen_width for figure in picture.figures), default=0.0)
    for figure in picture.figures:
        left, top, right, bottom = figure.box
        is_named = any(name in SOLID_SHAPES and v == "right" for name, v in figure.shapes.items())
        if figure.fills and is_named and min(right - left, bottom - top) > SOLID * pen:
            return False
    return True


def judge_figure_colour(figure: Figure, name: str, modifier: str, style: str) -> Verdict:
    """Return whether a figure has the colour; that of an outline around a fill is not sure."""
    fills = choose_best(judge_colour(colour, name, modifier) for colour in figure.fills)
    pens = choose_best(judge_colour(colour, name, modifier) for colour in figure.pens)
    if figure.is_outlined or style == "outlined":
        return choose_best([pens, min_verdict(fills, "cannot_tell")])
    return choose_best([fills, min_verdict(pens, "cannot_tell")])


def judge_figure_style(figure: Figure, style: str) -> Verdict:
    """Return whether a figure is `outlined` or `filled`."""
    if figure.shapes.get("line") == "right":
        return "cannot_tell"
    if figure.fills and figure.pens:
        return "cannot_tell" if style == "outlined" else "right"
    return "right" if figure.is_outlined == (style == "outlined") else "wrong"


def judge_size(figure: Figure, size: str) -> Verdict:
    """Return whether a figure is small, medium or large compared with the page."""
    return judge_range(figure.extent / GRID, SIZES[size])


def judge_place(box: tuple[float, float, float, float], place: str, picture: Picture) -> Verdict:
    """Return whether the centre of a box lies in the place on the page."""
    left, top, right, bottom = box
    x = (left + right) / 2 / picture.width - 0.5
    y = (top + bottom) / 2 / picture.height - 0.5
    if place == "centre":
        return judge_range(max(abs(x), abs(y)), (0.0, 0.0, *CENTRE))

    shifts = {"left": -x, "right": x, "top": -y, "bottom": y}
    verdict: Verdict = "right"
    for word in place.split():
        verdict = min_verdict(verdict, judge_number(shifts[word], -SIDE, SIDE))
    return verdict


def judge_relation(one: Figure, other: Figure, side: str) -> Verdict:
    """Return whether the first figure is left of, right of, above, below or inside the second."""
    if side == "inside":
        return _judge_inside(one, other)

    # gap between the boxes along the axis, and distance of the centres
    axis = 0 if side in ("left", "right") else 1
    before, behind = (one, other) if side in ("left", "above") else (other, one)
    gap = behind.box[axis] - before.box[axis + 2]
    shift = behind.centre - before.centre
    along = shift.real if axis == 0 else shift.imag
    smaller = min(figure.box[axis + 2] - figure.box[axis] for figure in (one, other))
    if gap >= -0.1 * smaller and along > 0:
        return "right"
    return "cannot_tell" if along > 0 and gap >= -0.5 * smaller else "wrong"


def _judge_inside(one: Figure, other: Figure) -> Verdict:
    left, top, right, bottom = (a - b for a, b in zip(one.box, other.box, strict=True))
    slack = 0.05 * other.extent
    if min(left, top, -right, -bottom) >= -slack and one.extent < 0.95 * other.extent:
        return "right"
    distance = abs(one.centre - other.centre)
    return "wrong" if distance > 0.5 * other.extent or one.extent > other.extent else "cannot_tell"


def judge_drawing_colour(picture: Picture, name: str, modifier: str) -> tuple[Verdict, str]:
    """Return whether the drawing shows the colour, and the finding."""
    shares: dict[Verdict, float] = {"right": 0.0, "cannot_tell": 0.0, "wrong": 0.0}
    for colour, share in picture.colours:
        shares[judge_colour(colour, name, modifier)] += share
    background = judge_colour(picture.background, name, modifier)
    finding = f"{shares['right']:.0%} of the painted area"

    holes = (judge_colour(colour, name, modifier) for colour in picture.hole_colours)
    verdict = choose_best([judge_number(shares["right"], *MIN_COLOUR), *holes])
    if picture.has_background:
        verdict = choose_best([verdict, background])
    elif background == "right":  # the bare page may be called white
        verdict = choose_best([verdict, "cannot_tell"])
    if verdict == "wrong" and (shares["cannot_tell"] >= MIN_COLOUR[1] or not picture.is_complete):
        return "cannot_tell", f"{shares['cannot_tell']:.0%} of the painted area is perhaps so"
    return verdict, finding


def judge_monochrome(picture: Picture) -> tuple[Verdict, str]:
    """Return whether the drawing is black, gray and white only, and the finding."""
    coloured: list[tuple[RGB, float]] = [*picture.colours]
    if picture.has_background:
        coloured.append((picture.background, 1.0))
    share = sum(share for colour, share in coloured if not is_achromatic(colour))
    return judge_range(share, (0.0, 0.0, 0.01, 0.05)), f"{share:.0%} of the painted area has a hue"


def judge_drawing_style(picture: Picture, style: str) -> Verdict:
    """Return whether the drawing as a whole is in outlines or solid."""
    has_tint = any(share > 0.2 for colour, share in picture.colours) and len(picture.colours) > 1
    outlined = judge_range(picture.thickness, (0.0, 0.0, *OUTLINES))
    if style == "outlined":
        return outlined
    filled = judge_number(picture.thickness, *OUTLINES)
    # A solid drawing of lines only is as thin as one in outlines, but has no rims.
    return "cannot_tell" if filled == "wrong" and (has_tint or not picture.has_rims) else filled


def judge_pen(picture: Picture, width: str) -> Verdict:
    """Return whether the drawing is in outlines of this width."""
    return (
        judge_range(picture.thickness, PENS[width])
        if width
        else judge_drawing_style(picture, "outlined")
    )
