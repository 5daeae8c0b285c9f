"""How one quantity follows another: correlation, and the bounds that errors in both leave to the slope. P points."""

from typing import NamedTuple

import numpy as np

from physicsml_ase.check.frame import Floats

TRIMMED = 5.0
"""Points further from the line than this many of the median distances from it are left out..."""
KEPT = 0.7
"""... but never more than the rest of this part."""
ROUNDS = 6


class Slope(NamedTuple):
    """y against x."""

    correlation: float
    low: float
    """Least squares of y against x, too flat by the errors in x..."""
    high: float
    """... and of x against y, too steep by the errors in y; of the sign of the correlation."""
    points: int
    free: float = 0.0
    """Independent points beyond what was fitted: of P points with something in common there are fewer."""
    spread: float = 0.0
    """Of y: the median distance from its median."""

    @property
    def middle(self) -> float:
        """Geometric mean of the bounds."""
        return float(np.sign(self.low) * np.sqrt(abs(self.low * self.high)))

    @property
    def error(self) -> float:
        """Standard error of the middle, as a part of it."""
        if self.free < 1 or not self.correlation:
            return float("inf")
        return float(np.sqrt((1 - self.correlation**2) / self.free)) / abs(self.correlation)


NOTHING = Slope(0.0, 0.0, 0.0, 0)


def slope(x: Floats, y: Floats, through_zero: bool = False, free: float | None = None) -> Slope:
    """The line through most of the points (P,), (P,), whatever a few outliers say.

    `free` of them are independent and not used up by a fit before; by default all.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3:
        return NOTHING
    scales = _spread(x), _spread(y)
    if min(scales) <= 0:
        return NOTHING
    x, y = x / scales[0], y / scales[1]
    if not through_zero:
        x, y = x - np.median(x), y - np.median(y)
    keep = np.hypot(x, y) <= np.quantile(np.hypot(x, y), KEPT)  # the farthest may be the wrong ones
    found = NOTHING
    for _ in range(ROUNDS):
        found = _line(x[keep], y[keep], through_zero)
        if not found.points:
            return NOTHING
        dx, dy = (x, y) if through_zero else (x - x[keep].mean(), y - y[keep].mean())
        middle = found.middle
        away = np.abs(dy - middle * dx) / np.sqrt(1 + middle**2)
        limit = max(TRIMMED * float(np.median(away)), float(np.quantile(away, KEPT)))
        keep = away <= limit
    ratio = scales[1] / scales[0]
    free = (len(x) if free is None else free) * found.points / len(x)
    return found._replace(low=found.low * ratio, high=found.high * ratio, free=free, spread=scales[1])


def _spread(values: Floats) -> float:
    """Robust, about zero if that is where they are."""
    return float(np.median(np.abs(values - np.median(values)))) or float(np.std(values))


def _line(x: Floats, y: Floats, through_zero: bool) -> Slope:
    if not through_zero:
        x, y = x - x.mean(), y - y.mean()
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    if xx <= 0 or yy <= 0 or xy == 0:
        return NOTHING
    return Slope(xy / float(np.sqrt(xx * yy)), xy / xx, yy / xy, len(x))
