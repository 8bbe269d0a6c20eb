"""Point lists of polygons and polylines, which are absolute."""

from data_pipeline.svg.numbers import MAGIC, TEXTS_AFTER_NUMBER, parse_numbers


def scale_points(
    text: str,
    scale: float,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 0,
    *,
    measure: bool = False,
) -> tuple[str, float]:
    """Return `1 2 3 4` for `1,2 3,4 5`: (point - origin) * scale, rounded, without an odd number.

    Also returns the area over which rounding moves the outline, as `scale_path` does.
    Raises PathError.
    """
    # round
    numbers = parse_numbers(text)
    num_coordinates = len(numbers) // 2 * 2
    units = scale * 10**decimals
    scaled = [
        (number - origin[n % 2]) * units for n, number in enumerate(numbers[:num_coordinates])
    ]
    rounded = [number + MAGIC - MAGIC for number in scaled]

    # measure
    double_area = 0.0
    if measure:
        errors = [abs(a - b) for a, b in zip(scaled, rounded, strict=True)]
        for n in range(2, num_coordinates, 2):
            double_area += (errors[n] + errors[n - 2]) * abs(scaled[n + 1] - scaled[n - 1])
            double_area += (errors[n + 1] + errors[n - 1]) * abs(scaled[n] - scaled[n - 2])

    # write
    texts = TEXTS_AFTER_NUMBER[decimals]
    written = [texts.known.get(number) or texts[number] for number in rounded]
    return "".join(written).lstrip(), double_area / 2
