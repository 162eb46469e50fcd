"""How sure a mean over few seeds is."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

# Quantile 0.975 of Student's t with 1, 2, ... degrees of freedom.
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def mean_interval(values: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean and its 95 % interval by Student's t; one value has no interval.

    A bootstrap of three values would be far too narrow.
    """
    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    half = student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, [mean - half, mean + half]


def student_quantile(freedom: int) -> float:
    """Quantile 0.975; beyond the table by the expansion of Abramowitz and Stegun (1964), 26.7.5."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))
