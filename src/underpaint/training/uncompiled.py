"""Torch's optimisers without its compiler, which takes seconds to import.

Torch wraps their methods so that its compiler, where it meets them, leaves them as they are; the
wrappers import the whole of it (`torch._dynamo`) at the first call. Steps are never compiled here,
so the methods are used without wrappers.
"""

import inspect
from typing import Any

import torch


class Uncompiled(torch.optim.Optimizer):
    """An optimiser that is never part of what is compiled."""

    add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict: Any = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad: Any = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Uncompiled, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
