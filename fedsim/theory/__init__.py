"""Closed forms, one file per policy, usable on their own: what a simulation should find on average, and how exactly.

    from fedsim import theory
    from fedsim.delays import Exponential

    theory.stsyn.round_time(n_devices=20, k=5, local_steps=10, step_s=Exponential(mean=1.0)).mean_s

Beside the policies: links, churn and asynchronous servers; training on quadratics (`quadratic_rounds`, `quadratic_stsyn`,
`quadratic_clock`, `quadratic_async`); published figures. `registry.expected` lists what a policy has on a given fleet.
"""

from fedsim.protocols import NoClosedForm
from fedsim.theory import (
    asynchronous,
    churn,
    drop_stragglers,
    embracingfl,
    fedasync,
    fedavg,
    fedbuff,
    feddrop,
    fedlama,
    fednova,
    fedpmt,
    flanp,
    heterofl,
    k_sync,
    links,
    published,
    quadratic,
    quadratic_async,
    quadratic_clock,
    quadratic_rounds,
    quadratic_stsyn,
    salf,
    stsyn,
)

__all__ = [
    "NoClosedForm",
    "asynchronous",
    "churn",
    "drop_stragglers",
    "embracingfl",
    "fedasync",
    "fedavg",
    "fedbuff",
    "feddrop",
    "fedlama",
    "fednova",
    "fedpmt",
    "flanp",
    "heterofl",
    "k_sync",
    "links",
    "published",
    "quadratic",
    "quadratic_async",
    "quadratic_clock",
    "quadratic_rounds",
    "quadratic_stsyn",
    "salf",
    "stsyn",
]
