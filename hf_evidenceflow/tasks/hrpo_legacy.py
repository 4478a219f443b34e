"""
The number parser of the public HRPO code, with its faults, so that results graded by it can be compared with ours.

Source: the code published with [Hybrid Latent Reasoning via Reinforcement
Learning](https://huggingface.co/papers/2505.18454). It knows no thousands separators: of `70,000` it reads `000`.
Unlike the original, fractions are divided here rather than given to `eval`.
"""

import re


_RUN = re.compile(r"(-?[0-9]+)(/?)(\.?[0-9]*)")
_MAX_LENGTH = 300  # longer ones overflow a float


def legacy_number(answer: str) -> float | None:
    """
    The last run of digits of an answer, with an optional minus before it and an optional decimal point or slash in it;
    `None` if there is none. `70,000` gives 0.0, `2,125` gives 125.0.
    """
    run = None
    for run in _RUN.finditer(answer):  # noqa: B007 (the last match is the answer)
        pass
    if run is None or len(run[0]) > _MAX_LENGTH:
        return None
    whole, slash, rest = run.groups()
    if not slash:
        return float(whole + rest)
    if not rest.strip("."):
        return float(whole)
    return float(whole) / float(rest) if float(rest) else None
