"""How a run's chance of error is shared among its looks.

A look is one test of "the candidate is no better than the head by more than a minimum". It is fruitless if it does not
end in a keep. The look after m fruitless ones may err with a chance of alpha / ((m+1)(m+2)): alpha/2, alpha/6,
alpha/12, alpha/20 and so on.

The promise: the chance that a run of any length keeps even one candidate that is no better is at most alpha.

Proof. Call a look null if its candidate is in truth no better. Up to and including the first false keep, the j-th null
look comes after j-1 null looks that did not end in a keep, so after at least j-1 fruitless ones. Its level is
therefore at most alpha / (j(j+1)), and, given all that came before, so is its chance of a keep. Summed over j,
alpha * (1/j - 1/(j+1)) telescopes to alpha. Looks at better candidates do not enter; their keeps cost nothing.

It holds whatever decides which candidates come, and when, as long as each look is valid given its past: fresh samples
of both checkpoints, and a level that is fixed before they are drawn.
"""

from __future__ import annotations


def level(alpha: float, num_fruitless: int) -> float:
    """The level of the next look of a run that has had `num_fruitless` fruitless ones."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha} is not between 0 and 1")
    if num_fruitless < 0:
        raise ValueError(f"{num_fruitless} fruitless looks are impossible")
    return alpha / ((num_fruitless + 1) * (num_fruitless + 2))
