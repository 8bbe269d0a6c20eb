"""Path data: literal tables, and distances between original and rewritten paths."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.svg.errors import PathError
from data_pipeline.svg.numbers import MAX_CACHED, NumberCache, TextCache, format_number
from data_pipeline.svg.path import scale_path
from data_pipeline.svg.points import scale_points
from tests.flattener import deviation, flatten


def scaled(
    d: str, scale: float, origin: tuple[float, float] = (0.0, 0.0), decimals: int = 0
) -> str:
    return scale_path(d, scale, origin=origin, decimals=decimals)[0]


@pytest.mark.parametrize(
    ("d", "scale", "written"),
    [
        ("M0,0H24V12z", 2, "m0 0h48v24z"),
        ("M 10 10 L 20 20 30 10 Z", 1, "m10 10 10 10 10-10z"),
        ("m1 1 2 2 3 0", 1, "m1 1 2 2h3"),
        ("M1-5.66.35 1e-3", 100, "m100-566-65 566"),  # implicit separators, an exponent
        ("M1+1h+2e0.5E+1-1e+0", 1, "m1 1h2 5-1"),
        ("M0 0a1 1 0 01 5 5", 10, "m0 0a10 10 0 0 1 50 50"),  # glued flags
        ("M0 0a1 1 0 015 5", 10, "m0 0a10 10 0 0 1 50 50"),
        ("M0 0a1 1 0 0 1.5.5a1 1 0 01.5.5", 10, "m0 0a10 10 0 0 1 5 5 10 10 0 0 1 5 5"),
        ("M0 0a20 10 30 1110 10", 1, "m0 0a20 10 30 1 1 10 10"),
        ("M0 0C0 3 3 6 6 6S12 9 12 12", 1, "m0 0c0 3 3 6 6 6s6 3 6 6"),
        ("M0 0C1 1 2 2 3 3S5 5 6 6", 1, "m0 0 3 3 3 3"),  # curves that are nowhere off their chords
        ("M0 0c0 .6.4 1 1 1", 1, "m0 0 1 1"),
        ("M0 0c0 .6.4 1 1 1", 10, "m0 0c0 6 4 10 10 10"),
        ("M0 0c5 0-5 0 3 0", 1, "m0 0c5 0-5 0 3 0"),  # beyond its ends
        (
            "M0 0a1 1 0 0 0 0 2s0 2 2 2",
            10.667,
            "m0 0c-6 0-11 5-11 11 0 6 5 10 11 10 0 0 0 22 21 22",
        ),
        ("M5 5c0 .1.1.1.1.1", 1, "m5 5h0"),
        ("M0 0Q3 3 6 0T12 0", 1, "m0 0q3 3 6 0t6 0"),
        ("M0 0l.4 0 .4 0 .4 0 .4 0", 1, "m0 0h1 1"),  # rounding does not accumulate
        ("M5 5h3zm2 2h1", 1, "m5 5h3zm2 2h1"),
        ("M5 5h.001", 1, "m5 5h0"),  # a dot of its round cap survives
        ("M5 5h0v0M9 9h1", 1, "m5 5h0m4 4h1"),
        ("M5 5h.001v.001zM9 9h1", 1, "m5 5h0zm4 4h1"),
        ("M1 1l0 0 0 4", 1, "m1 1v4"),
        ("M0 0a1 1 0 0 1 1e-200 0h9", 1, "m0 0h9"),
        ("M0 0a1e-320 1e-300 0 0 1 9 0", 1, "m0 0h9"),
        ("M0 0a1e7 1e-8 0 1 1 9 0", 1, "m0 0h9"),
        ("M0 0A3e7 3e7 0 0 1 9 0", 10, "m0 0h90"),  # a huge arc is a line
        ("M0 0a1e200 1e300 30 0 0 9 9", 1, "m0 0 9 9"),
        ("M0 0a1e6 1e6 0 0 1 0 900", 1, "m0 0v900"),
        ("M0 0a2e5 2e5 0 0 1 0 900", 1, "m0 0a200000 200000 0 0 1 0 900"),
        ("", 1, ""),
    ],
)
def test_paths_are_written_in_their_shortest_form(d: str, scale: float, written: str) -> None:
    assert scaled(d, scale) == written
    assert scaled(written, 1) == written


def test_flags_are_read_with_and_without_separators() -> None:
    spaced = "M0 0a9 9 0 0 1 5.5.5 9 9 0 1 0-5 5A9 9 30 0 1 1 1"
    for glued in (
        "M0 0a9 9 0 015.5.5 9 9 0 10-5 5A9 9 30 011 1",
        "M0,0a9,9,0,0,1,5.5,.5,9,9,0,1,0-5,5A9 9 30 01 1 1",
    ):
        assert scaled(glued, 3) == scaled(spaced, 3)


def moved_area(d: str, scale: float) -> float:
    return scale_path(d, scale, measure=True)[1]


def test_the_area_moved_by_rounding_is_measured() -> None:
    assert moved_area("M0 0h10v10", 1) == 0
    assert moved_area("M0.25 0v10", 1) == pytest.approx(2.5)
    assert moved_area("M0.25 0v10", 4) == 0
    assert moved_area("M0.25 0h10", 1) == 0  # along the line


def test_points_stay_absolute() -> None:
    assert scale_points("1,2-3.26 4 5", 10, origin=(1, 0)) == ("0 20-43 40", 0)
    assert scale_points("", 1) == ("", 0)
    assert scale_points("0.25,0 0.25,10 0.25 10.5", 1, measure=True) == (
        "0 0 0 10 0 10",
        pytest.approx(2.625),
    )


def test_points_are_moved_and_rounded_to_decimals() -> None:
    assert scaled("m-6-6h3l1.26 1", 10, origin=(-6, -6)) == "m0 0h30l13 10"
    assert scaled("M1 1h.26v-.5", 1, decimals=1) == "m1 1h.3v-.5"
    assert scaled("M1 1h.26v-.5", 1, decimals=2) == "m1 1h.26v-.5"


@pytest.mark.parametrize(
    "d",
    [
        "M1 1h1e9",
        "M1 1h1e999",
        "M0 0h5e8v1l1e9 1",
        "M0 0a9e9 9e9 0 1 1 9 0",
    ],
)
def test_numbers_far_outside_any_drawing_are_refused(d: str) -> None:
    with pytest.raises(PathError):
        scaled(d, 1)


@pytest.mark.parametrize(
    ("d", "written"),
    [
        ("10 10", ""),
        ("L1 1", ""),
        ("M1", ""),
        ("M1 1L2", "m1 1"),
        ("M1 1L2 2 3", "m1 1 1 1"),
        ("M1 1h", "m1 1"),
        ("M1 1X2", "m1 1"),
        ("M1 1h3 X h9", "m1 1h3"),
        ("M1 1a1 1 0 2 1 5 5", "m1 1"),
        ("M1 1a1 1 0 02 5 5", "m1 1"),
        ("M1 1a1 1 0 01. 5", "m1 1"),
        ("M1 1a1 1 0 +1 1 5 5", "m1 1"),
        ("M1 1a1 1 0 015", "m1 1"),
        ("M1 1a1 1 0 015 5 1 1 0 015", "m1 1a1 1 0 0 1 5 5"),
        ("M1 1z3", "m1 1z"),
        ("M1 1h1zm2 2 l", "m1 1h1zm2 2"),
        ("M1 1c1 2 3 4 5", "m1 1"),
        ("M1 1..5", "m1 1"),
        ("M 1 1 h NaN", "m1 1"),
        ("M0 0h1;v1", "m0 0h1"),
        ("M1,1,,2,2", "m1 1"),
        ("M1,1 2, ,2h3", "m1 1"),
        ("M1,1,2,2,h3", "m1 1 1 1h3"),
        ("M0 0h1\N{NO-BREAK SPACE}v1", "m0 0h1"),
        ("M0 0a" + "1" * 500, "m0 0"),
    ],
)
def test_data_is_read_up_to_its_first_error(d: str, written: str) -> None:
    assert scaled(d, 1) == written
    assert scaled(written, 1) == written


@pytest.mark.parametrize(
    ("d", "written"),
    [
        ("M5 5h.001", "m5 5h0"),
        ("M5 5v.001M9 9h1", "m5 5h0m4 4h1"),
        ("M5 5l.001.002M9 9h1", "m5 5 1 1m3 3h1"),  # a square cap stands along the line
        ("M5 5l-.001.002", "m5 5-1 1"),
        ("M5 5h.001z", "m5 5h1z"),
        ("M5 5h.001v.001zM9 9h1", "m5 5h1v1h-1zm4 4h1"),  # its joins cover a square
        ("M5 5h.001v.001h-.001v-.001zM9 9h1", "m5 5h1v1h-1zm4 4h1"),
        ("M5 5h3zh.001", "m5 5h3zh0"),
    ],
)
def test_caps_of_stroked_dots_survive(d: str, written: str) -> None:
    assert scale_path(d, 1, is_stroked=True)[0] == written
    assert scale_path(written, 1, is_stroked=True)[0] == written


@pytest.mark.parametrize(
    ("d", "written"),
    [
        ("M4 0v9h.1V0", "m4 0v9h1l-1-9"),
        ("M4 0v9h-.1V0", "m4 0v9h-1l1-9"),
        ("M4 0v9h.05h.05V0", "m4 0v9h1l-1-9"),  # two segments vanish together
        ("M0 4H9V4.1z", "m0 4h9v1z"),  # the second line is the closing one
        ("M0 0 9 9 9.1 9.1 0 1", "m0 0 9 9-9-8"),  # along the line
        ("M4 0v9h.1V20", "m4 0v9 11"),  # straight on
        ("M0 0h9v.1h.1V9", "m0 0h9v9"),
        ("M4 0v9h.1v-9M20 0h.1V9", "m4 0v9h1l-1-9m16 0v9"),
        ("M4 0v9h3L4.1 0z", "m4 0v9h3l-2-9z"),  # the closing segment itself
        ("M4 0v9h.1V0z", "m4 0v9h1v-9z"),
        ("M4 9V0h3v8H4V8.9z", "m4 9v-9h3v8h-3v1z"),  # straight on
        ("M4 0v9h3L4 0z", "m4 0v9h3l-3-9z"),
        ("M4 0v9h3L4.0000001 0z", "m4 0v9h3l-3-9z"),  # an error of floats
    ],
)
def test_short_segments_survive_where_a_stroke_turns_back(d: str, written: str) -> None:
    assert scale_path(d, 1, is_stroked=True)[0] == written
    assert scale_path(written, 1, is_stroked=True)[0] == written
    assert "1l" not in scaled(d, 1)


def test_a_closing_segment_survives_in_units_of_the_last_decimal() -> None:
    for _ in range(2):  # the second time with cached texts
        assert scale_path("M4 0v9h3L4.01 0z", 1, decimals=1, is_stroked=True)[0] == (
            "m4 0v9h3l-2.9-9z"
        )


def test_short_segments_of_points_survive_where_a_stroke_turns_back() -> None:
    points = "4,0 4,9 4.1,9 4.1,0"
    assert scale_points(points, 1, is_stroked=True)[0] == "4 0 4 9 5 9 4 0"
    assert scale_points("4 0 4 9 5 9 4 0", 1, is_stroked=True)[0] == "4 0 4 9 5 9 4 0"
    assert scale_points(points, 1)[0] == "4 0 4 9 4 9 4 0"
    assert scale_points("4 0 4 9 4.1 9 4.1 20", 1, is_stroked=True)[0] == "4 0 4 9 4 9 4 20"


@pytest.mark.parametrize(
    ("points", "is_closed", "written"),
    [
        ("4,0 4,9 4.1,9 4.1,0", True, "4 0 4 9 5 9 5 0"),
        ("4,0 4.1,9 4,9 4.1,0 4,0.1", True, "4 0 4 9 3 9 5 0 4 0"),
        ("4,0 4,9 7,9 4.0000001,0", True, "4 0 4 9 7 9 4 0"),  # an error of floats
        ("4,0 4,9 7,9 4.1,0", False, "4 0 4 9 7 9 4 0"),
        ("5,5 5.1,5.1", False, "5 5 6 6"),  # a square cap stands along the line
        ("5,5 5.1,5", False, "5 5 5 5"),
        ("5,5 5.1,5 5.1,5.1", True, "5 5 6 5 6 6"),  # its joins cover a square
        ("5,5 5.1,5", True, "5 5 6 5"),
        ("5,5 5,5 5,5", True, "5 5 5 5 5 5"),
        ("5,5", True, "5 5"),
    ],
)
def test_short_segments_of_closed_points_and_dots_survive(
    points: str, is_closed: bool, written: str
) -> None:
    for text in (points, written):
        scaled_points, _ = scale_points(text, 1, is_stroked=True, is_closed=is_closed)
        assert scaled_points == written


def test_points_are_read_up_to_their_first_error() -> None:
    assert scale_points("1,2 3,4 x 5,6", 1)[0] == "1 2 3 4"
    assert scale_points("1,2 3,4 5; 6", 1)[0] == "1 2 3 4"
    assert scale_points("1,2,3 ,4,,5 6", 1)[0] == "1 2 3 4"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.5, 1, ".5"),
        (-0.5, 2, "-.5"),
        (-0.04, 1, "0"),
        (10.0, 2, "10"),
        (100, 0, "100"),
        (10.05, 3, "10.05"),
    ],
)
def test_numbers_get_their_shortest_text(value: float, decimals: int, text: str) -> None:
    assert format_number(value, decimals) == text


def test_number_caches_are_bounded() -> None:
    texts, numbers = TextCache(1, " "), NumberCache()
    for n in range(MAX_CACHED + 9):
        assert texts[float(n * 10)] == f" {n}"
        assert numbers[f"{n}."] == n
    assert len(texts) == len(texts.known) == len(numbers) == MAX_CACHED


coordinates = st.floats(-40, 40).map(lambda value: round(value, 3))
radii = st.floats(0, 30).map(lambda value: round(value, 3))
ATOMS = {
    "h": st.tuples(coordinates),
    "v": st.tuples(coordinates),
    "l": st.tuples(coordinates, coordinates),
    "t": st.tuples(coordinates, coordinates),
    "q": st.tuples(*[coordinates] * 4),
    "s": st.tuples(*[coordinates] * 4),
    "c": st.tuples(*[coordinates] * 6),
    "a": st.tuples(
        radii,
        radii,
        st.integers(0, 180),
        st.integers(0, 1),
        st.integers(0, 1),
        coordinates,
        coordinates,
    ),
    "z": st.just(()),
    "m": st.tuples(coordinates, coordinates),
}
segments = st.sampled_from(sorted(ATOMS)).flatmap(
    lambda kind: st.tuples(st.sampled_from([kind, kind.upper()]), ATOMS[kind])
)


def written(path: list[tuple[str, tuple[float, ...]]]) -> str:
    return "M3 4" + "".join(kind + " ".join(map(str, numbers)) for kind, numbers in path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(segments, max_size=8).map(written), st.sampled_from([0.3, 1.0, 10.667]))
def test_no_point_moves_by_more_than_a_unit(d: str, scale: float) -> None:
    after = scaled(d, scale)
    flattening_error = 0.02  # from chords of 1/32 of a curve
    assert deviation(flatten(d, scale), flatten(after, 1)) <= 1.0 + flattening_error
    assert scaled(after, 1) == after


def test_real_icons_move_by_at_most_a_unit_and_are_fixed_points() -> None:
    worst = 0.0
    for icon in list(read_phosphor())[::397]:
        for d in re.findall(r'\sd="([^"]*)"', icon.svg.decode()):
            after = scaled(d, 1)
            worst = max(worst, deviation(flatten(d, 1), flatten(after, 1)))
            assert scaled(after, 1) == after
    assert 0.3 < worst <= 1.0
