"""Elliptical arcs: where their middle is, and the Bézier curves that draw them."""

import math


class Arc:
    """The centre form of an arc (SVG 1.1, F.6.5), the start of its chord at 0, 0."""

    __slots__ = ("cos", "half", "rise", "rx", "ry", "side", "sin", "u", "v")

    def __init__(self, dx: float, dy: float, rx: float, ry: float, phi: float, large: bool, sweep: bool):
        self.cos, self.sin = (math.cos(math.radians(phi)), math.sin(math.radians(phi))) if phi else (1.0, 0.0)
        u, v = (dx * self.cos + dy * self.sin) / rx, (dy * self.cos - dx * self.sin) / ry
        half = math.hypot(u, v) / 2
        if half > 1:  # radii too small for the chord grow to a half turn
            rx, ry, u, v, half = rx * half, ry * half, u / half, v / half, 1.0
        self.rx, self.ry, self.u, self.v, self.half = rx, ry, u, v, half
        rise = math.sqrt(1 - half * half)  # from the chord to the centre, on the unit circle
        self.rise = rise if large else -rise
        self.side = 1.0 if sweep else -1.0

    def _back(self, u: float, v: float) -> tuple[float, float]:
        u, v = u * self.rx, v * self.ry
        return u * self.cos - v * self.sin, u * self.sin + v * self.cos

    def _off_chord(self, distance: float) -> tuple[float, float]:
        share = distance * self.side / (2 * self.half)
        return self.u / 2 + self.v * share, self.v / 2 - self.u * share

    def middle(self) -> tuple[float, float]:
        """The point half way along the arc."""
        return self._back(*self._off_chord(1 + self.rise))

    def cubics(self) -> list[tuple[float, float, float, float, float, float]]:
        """Bézier curves of at most a quarter turn each (radial error 0.03%), an eighth of large ellipses."""
        cu, cv = self._off_chord(self.rise)
        angle = math.atan2(-cv, -cu)
        turn = (math.atan2(self.v - cv, self.u - cu) - angle) * self.side % math.tau * self.side
        most = math.pi / 2 if max(self.rx, self.ry) < 512 else math.pi / 4
        num_curves = math.ceil(abs(turn) / most - 1e-9) or 1
        step = turn / num_curves
        pull = 4 / 3 * math.tan(step / 4)
        curves = []
        for n in range(num_curves):
            a, b = angle + n * step, angle + (n + 1) * step
            first = self._back(cu + math.cos(a) - pull * math.sin(a), cv + math.sin(a) + pull * math.cos(a))
            second = self._back(cu + math.cos(b) + pull * math.sin(b), cv + math.sin(b) - pull * math.cos(b))
            curves.append((*first, *second, *self._back(cu + math.cos(b), cv + math.sin(b))))
        return curves
