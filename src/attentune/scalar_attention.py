"""Attention with heads of width 1 in linear time, to a certified error.

With scalar queries and keys a head's output is a function of one number, the query:

    f(q) = sum_j v_j exp(q k_j) / sum_j exp(q k_j)

Let s = max k - min k over the keys that may be attended to, and q = x + iy with |y| < pi/s. Divide both sums by
exp(q c), c the middle of the keys: the denominator's terms then have arguments of at most s|y|/2 < pi/2, so that its
modulus is at least cos(s y / 2) sum_j exp(x (k_j - c)), and |f(q)| <= max|v| / cos(s y / 2). So f is analytic in a
strip whose width is known before anything is computed, and a polynomial through n Chebyshev points of a panel of
half-width h is within

    4 M rho^(1 - n) / (rho - 1),    (rho - 1/rho) / 2 = y / h,    M = max|v| / cos(s y / 2)

of it (Trefethen, Approximation Theory and Approximation Practice, theorem 8.2), for every y below pi/s. The row's query
range is cut into P equal panels; P and n follow from (query range, s, wanted error) alone. f is evaluated exactly at
the P n points, cost P n T, and each query looks up its panel's polynomial, cost n T, instead of T^2.

Rows and heads share P and n. Those whose product of range and s is below the largest get a wider range, of the same
product: the bound is the same, and the gradient, a difference of the nodes' values over the panel's width, does not
grow out of their rounding where queries are nearly equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.import_utils import is_tracing

ERROR = 1e-6
"""What is wanted, of the largest |v|: about what float32 itself costs."""
MOST_PANELS, MOST_NODES = 64, 32
STRIPS = tuple(i / 40 for i in range(4, 40))
"""Where the bound is tried, as parts of the strip pi/s."""
LOOK_UP = 16
"""Measured: reading a panel's polynomial costs a query as much as so many keys a node."""
PREFIX = 32
"""Measured: prefix sums of a causal row cost so many times the attention of a node."""
REACH = 600.0
"""Largest |q| times key spread of a causal row: exp(-600) is still a number in float64, to all its digits."""
LEAST = 1024
"""Below so many queries attention itself takes too little time to gain on."""
LEAST_PRODUCT = 1.0
"""Ranges are widened to it at least, so that equal queries have a gradient."""
NARROWEST = 1e-30
"""Keys that spread less count as so far apart; what they attend to is as good as constant."""
MARGIN = 1.5
"""How many times fewer steps there must be before the other way is taken."""


@dataclass(frozen=True)
class Plan:
    """P panels of n nodes."""

    panels: int
    nodes: int

    def steps(self, queries: int, keys: int) -> int:
        """What it costs, in terms of one query times one key."""
        return self.nodes * (self.panels * keys + LOOK_UP * queries)


def bound(product: float, panels: int, nodes: int) -> float:
    """The certified error of one head, as a part of max|v|; `product` is query range times key spread."""
    if product <= 0:
        return 0.0
    least = math.inf
    for part in STRIPS:
        semi = 2 * math.pi * part * panels / product
        rho = semi + math.hypot(semi, 1.0)
        if rho == 1:
            return math.inf
        least = min(least, 4 / (math.cos(math.pi * part / 2) * (rho - 1)) * rho ** (1 - nodes))
    return least


@lru_cache(maxsize=4096)
def plan(product: float, error: float = ERROR) -> Plan | None:
    """The cheapest panels and nodes with at most this error for long rows; None where there are none."""
    found: list[Plan] = []
    for panels in range(1, MOST_PANELS + 1):
        nodes = next((n for n in range(2, MOST_NODES + 1) if bound(product, panels, n) <= error), None)
        if nodes is not None:
            found.append(Plan(panels, nodes))
    return min(found, key=lambda one: one.steps(1, 1), default=None)


def spread(keys: Tensor, allowed: Tensor | None) -> Tensor:
    """Max minus min of the keys that may be attended to.  keys [B,h,Tk,1], allowed [B,1,1,Tk] bool -> [B,h,1,1]"""
    low, high = _ends(keys, allowed)
    return (high - low).clamp(min=0)


def _middle(keys: Tensor, allowed: Tensor | None) -> Tensor:
    """Of the keys that may be attended to, [B,h,1,1]; 0 where there are none."""
    low, high = _ends(keys, allowed)
    return torch.where(high < low, 0.0, low + (high - low) / 2)


def _ends(keys: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    if allowed is None:
        low, high = keys.aminmax(dim=-2, keepdim=True)
        return low, high
    there = allowed.transpose(-1, -2)
    low = keys.masked_fill(~there, math.inf).amin(-2, keepdim=True)
    high = keys.masked_fill(~there, -math.inf).amax(-2, keepdim=True)
    return low, high


def range_of(queries: Tensor, keys: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest query and the range [B,h,1,1] that every row's and head's panels cover, and the product [] of range
    and key spread, which is the same for all; at least float32.  queries [B,h,Tq,1], the others as of `spread`
    """
    low, high = (_wide(end) for end in queries.aminmax(dim=-2, keepdim=True))
    apart = _wide(spread(keys, allowed))
    product = ((high - low) * apart).amax().clamp(min=LEAST_PRODUCT)
    width = product / apart.clamp(min=NARROWEST)
    return (low + high - width) / 2, width, product


def product_of(queries: Tensor, keys: Tensor, allowed: Tensor | None) -> float:
    """The product of query range and key spread, rounded up to a quarter of a power of two: a plan for it is safe, and
    few plans are made. Arguments as of `range_of`.
    """
    found = float(range_of(queries, keys, allowed)[2])
    return 2 ** (math.ceil(4 * math.log2(found)) / 4) if math.isfinite(found) else found


def faster(queries: Tensor, keys: Tensor, allowed: Tensor | None, causal: bool = False) -> Plan | None:
    """The plan, where it takes fewer steps than attention itself; else None. Arguments as of `attend`.

    Never while a graph is made of it (the choice depends on numbers), nor for a causal row that continues another.
    """
    count = queries.shape[-2], keys.shape[-2]
    if count[0] < LEAST or is_tracing() or (causal and count[0] != count[1]):
        return None
    queries, keys = queries.detach(), keys.detach()
    product = product_of(queries, keys, allowed)
    if not math.isfinite(product) or (causal and not _reaches(queries, keys, allowed)):
        return None
    found = plan(product)
    if found is None:
        return None
    steps = found.steps(*count) if not causal else PREFIX * found.nodes * found.panels * count[1]
    return found if MARGIN * steps < count[0] * count[1] else None


def _reaches(queries: Tensor, keys: Tensor, allowed: Tensor | None) -> bool:
    """Whether float64 has the exponents for the prefix sums at all nodes."""
    low, width, _ = range_of(queries, keys, allowed)
    farthest = torch.maximum(low.abs(), (low + width).abs())
    return float((farthest * _wide(spread(keys, allowed))).amax()) <= REACH


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, by: Plan, causal: bool = False
) -> Tensor:
    """softmax(q k') v of scalar queries and keys, panel by panel.

    queries [B,h,Tq,1], keys [B,h,Tk,1], values [B,h,Tk,e], allowed [B,1,1,Tk] bool -> [B,h,Tq,e]; `causal` (Tq = Tk):
    no query sees later keys. Gradients are those of the interpolant. A query that may attend to nothing gets zeros when
    causal, and what PyTorch's attention gives otherwise. Half precision and autocast: it works in float32, as a query's
    place in its panel needs the digits, and gives the dtype of the values.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, k, v = (_wide(t) for t in (queries, keys, values))
        # Of keys' differences alone f depends; centred, their products with far nodes lose no digits.
        k = k - _middle(k.detach(), allowed)
        return _attend(q, k, v, allowed, by, causal).to(values.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, by: Plan, causal: bool) -> Tensor:
    low, width, _ = range_of(q.detach(), k.detach(), allowed)
    places, transform = _chebyshev(by, q.dtype, q.device)
    nodes = low + width * places[:, None]
    at = (q - low) / width * by.panels
    panel = at.detach().floor().clamp(0, by.panels - 1)
    x = 2 * (at - panel) - 1
    if causal:
        found = _causal(nodes, k, v, allowed).unflatten(2, (by.panels, by.nodes))  # [B,h,P,n,T,e]
        coefficients = torch.einsum("jn,bhpnte->jbhpte", transform, found)
        rows = panel.long()[..., None, :, :].expand(*panel.shape[:2], 1, -1, v.shape[-1])
        picked = coefficients.gather(3, rows[None].expand(by.nodes, *rows.shape))[:, :, :, 0]
    else:
        found = F.scaled_dot_product_attention(nodes, k, v, attn_mask=allowed, scale=1.0)
        coefficients = torch.einsum("jn,bhpne->jbhpe", transform, found.unflatten(2, (by.panels, by.nodes)))
        rows = panel.long().expand(*panel.shape[:3], v.shape[-1])
        picked = coefficients.gather(3, rows[None].expand(by.nodes, *rows.shape))
    return _clenshaw(picked, x)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _causal(nodes: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
    """F at every node after every key.  nodes [B,h,N,1], keys [B,h,T,1], values [B,h,T,e] -> [B,h,N,T,e]

    In float64, whose exponents reach far enough down for sums that are small beside a row's largest term: see REACH.
    """
    scores = nodes.double() @ keys.double().transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    most = scores.detach().amax(-1, keepdim=True)
    weights = (scores - most.masked_fill(most == -math.inf, 0.0)).exp()
    below = weights.cumsum(-1)[..., None]
    above = (weights[..., None] * values.double()[:, :, None]).cumsum(-2)
    return (above / below.masked_fill(below == 0, 1.0)).to(values.dtype)


def _clenshaw(coefficients: Tensor, x: Tensor) -> Tensor:
    """sum_j c_j T_j(x).  coefficients [n,B,h,T,e], x [B,h,T,1] -> [B,h,T,e]"""
    after, last = torch.zeros_like(coefficients[0]), torch.zeros_like(coefficients[0])
    for c in coefficients[1:].flip(0):
        after, last = c + 2 * x * after - last, after
    return coefficients[0] + x * after - last


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # Kept for later calls, which may train.
def _chebyshev(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places [P n] of all nodes in 0..1, and [n,n] that makes coefficients of the values at a panel's nodes."""
    angles = math.pi * (torch.arange(plan.nodes, dtype=torch.float64) + 0.5) / plan.nodes
    inside = (1 - angles.cos()) / 2
    places = (torch.arange(plan.panels, dtype=torch.float64)[:, None] + inside).flatten() / plan.panels
    # x = -cos(angle), so that nodes rise with the query
    order = torch.arange(plan.nodes, dtype=torch.float64)[:, None]
    transform = 2 / plan.nodes * (order * (math.pi - angles)).cos()
    transform[0] /= 2
    return places.to(device, dtype), transform.to(device, dtype)
