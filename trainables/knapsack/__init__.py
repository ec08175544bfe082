"""Multiple-choice knapsacks with several limits and shared choices, solved exactly in hundredths of a second. No torch.

    problem.py    the numbers of an allocation: losses and counts of every pair of widths
    dual.py       multipliers of the limits, and the lower bound that goes with them
    candidates.py what a gap above that bound leaves of each group of layers
    search.py     the best of these within the limits: dynamic programming, cut by bounds
    exact.py      from one gap to the next until the best policy is proven

With D multipliers μ >= 0 and x running over all policies, whatever they cost (Dyer 1984, Zemel 1984: MCKP's linear
relaxation by its dual),

    loss(x) >= min_x' [loss(x') + μ·c(x')] − μ·C + ρ(x),    ρ(x) = Σ_l ρ_l(w, a) + Σ_g ρ_g(a) >= 0

for every x within the limits C. ρ are reduced losses: how much worse a choice is than its owner's best at these prices.
So an option whose ρ exceeds the gap between a known policy and the bound is in no better policy, and few are left
(Pisinger 1995 searches such a core of the one-limit problem).
"""

from __future__ import annotations
