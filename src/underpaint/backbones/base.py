"""The contract between a network and everything else, and the table of networks.

    backbone(patches, c_noise, labels, mask) → Prediction(visible [B, V, P], hidden | None)

A backbone gets the visible patches alone, gathered before this call, so that hidden ones cost
nothing, with the mask, which says where they are. Trainable tensors live in ordinary layers, so
that per-sample gradients, sharding and exports find them. Two have fixed names: `positions`, the
`nn.Embedding` of patch positions (looked up with visible ids), and `labels`, the `nn.Embedding`
with a row a class, perhaps one more for null. Layers that are no part of the blocks have the names
in `_OUTER`: by these `hidden_matrices` knows what Muon is for.

A new network is one file: a subclass with `__init__` and `forward` and
`@register("name", "one line")`, imported in `backbones/__init__.py`. Shapes in `forward` depend on
those of its arguments, never on values: it can be compiled, and what it costs is counted
(`counting`). Keyword arguments of the constructor that are settings of `network` get these, one
named `patch` the side of a patch, for networks that want the image back (P = C·patch²), and all
others are its `network.options`.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underpaint import config as configuration
from underpaint.backbones import counting
from underpaint.core.denoiser import Prediction as Prediction
from underpaint.core.masks import Mask
from underpaint.errors import UserError

State = dict[str, Tensor]


class Backbone(nn.Module):
    """A network that predicts at positions.

    Labels are int64 [B] in 0..classes−1, or −1 for the null label; None only where `classes` is 0.
    Every parameter gets a gradient (perhaps zero) from any batch: masked or whole, all labels real
    or all null.

    A kind whose constructor names `augment` has, where that is true, one more layer,
    `augment_embedding` (`layers.augment_embedding`): it takes the keyword `condition` [B, D] of
    `core/augmentation.py`, and None is the zero vector.
    """

    predicts_hidden: ClassVar[bool] = False  # whether a decoder predicts the hidden patches as well

    stride: int = 1  # sides and corners of a crop mask are multiples of this many patches
    unit: int = 1  # masks of all kinds come in squares of this many patches a side

    built: tuple[Callable[..., nn.Module], counting.Arguments]  # class and arguments

    def __init__(self, grid: tuple[int, int], patch_dim: int, classes: int) -> None:
        super().__init__()
        self.grid, self.patch_dim, self.classes = grid, patch_dim, classes

    def forward(
        self, patches: Tensor, c_noise: Tensor, labels: Tensor | None, mask: Mask
    ) -> Prediction:
        """`patches` [B, V, P], `c_noise` [B] → raw output F at the patches."""
        raise NotImplementedError

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the constructor's arguments: another network of these shapes may be built."""
        made = super().__new__(cls)
        if args or kwargs:  # not in a copy
            given = dict(zip(list(_arguments(cls))[1:], args, strict=False)) | kwargs
            made.built = (
                cls,
                tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in given.items()),
            )
        return made

    def all_blocks(self) -> list[nn.Module]:
        """What is sharded, and computed anew in the backward pass, one by one.

        Here the items of its `nn.ModuleList`s, the outermost of those in one another. Each must be
        called as a module, never by another method.
        """
        return _items(self)

    @property
    def features(self) -> int:
        """Numbers a patch at the narrowest place between a network's input and its output.

        Over a whole image of N patches ∂F/∂patches [N·P, N·P] has a rank of N·features at most.
        Right where patches enter by a linear layer `embed`, leave by a linear layer `head`, and are
        nowhere narrower than there; other networks override it.
        """
        embed, head = getattr(self, "embed", None), getattr(self, "head", None)
        sides = [embed.out_features] if isinstance(embed, nn.Linear) else []
        sides += [head.in_features] if isinstance(head, nn.Linear) else []
        return min(sides, default=self.patch_dim)

    # --- what it costs: counted when it is asked for, which imports torch's compiler ----------

    def flops(self, visible: int, mask: str = "patch") -> int:
        """FLOPs per image of a forward pass on `visible` patches under a mask of this kind.

        2 a multiply-add of linear layers, convolutions and attention; training costs three times
        this.
        """
        return counting.flops(*self.built, visible, self.counted_kind(visible, mask))

    def activation_bytes(
        self,
        visible: int,
        mask: str = "patch",
        bytes_per: int = 4,
        *,
        fused: bool = True,
        recompute: bool = False,
    ) -> int:
        """Bytes an image that training keeps from the forward for the backward pass.

        In float32 (`bytes_per` 4) or under bf16 autocast (2), which leaves some of it in float32.
        Not `fused`: with the weights of all pairs of tokens in attention. `recompute`: where the
        blocks are computed again in the backward pass.
        """
        kind = self.counted_kind(visible, mask)
        how = (bytes_per < 4, fused, recompute)
        return counting.activation_bytes(*self.built, visible, kind, *how)

    def saves(self, visible: int, mask: str) -> bool:
        """Whether patches hidden by a mask of this kind need not be computed on."""
        return self.flops(visible, mask) < self.flops(self.grid[0] * self.grid[1])

    def counted_kind(self, visible: int, mask: str) -> str:
        """Kinds of masks that have the same shapes are counted once."""
        return "crop" if mask == "crop" and visible < self.grid[0] * self.grid[1] else "patch"


def _items(module: nn.Module, listed: bool = False) -> list[nn.Module]:
    """The items of the module lists in `module`, but for those within others' items.

    `listed`: it is such a list itself.
    """
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += _items(child, True)
        else:
            found += [child] if listed else _items(child)
    return found


def position_ids(mask: Mask, batch: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Numbers of the visible patches [B, V].

    The whole image is spelled out too, not broadcast: the lookup keeps its batch dimension, which
    per-sample gradients need.
    """
    if mask.grid != grid:
        raise ValueError(f"the mask's grid {mask.grid} is not the network's {grid}")
    if mask.visible is not None:
        return mask.visible
    return torch.arange(grid[0] * grid[1], device=device).expand(batch, -1)


# --- the table -----------------------------------------------------------------------------------

Kind = TypeVar("Kind", bound=type[Backbone])

_KINDS: dict[str, tuple[type[Backbone], str]] = {}
# settings of `network` that a kind gets if its constructor names them; without a meaning elsewhere
_COMMON = ("width", "depth", "heads", "mlp_ratio")
# the same, but refused where they are asked of a kind that does not name them
_FEATURES = {
    "dropout": "network.dropout: {} has no dropout; leave it out",
    "qk_norm": "network.qk_norm: {} has no norms of queries and keys; leave it out",
    "augment": "augment: {} cannot be conditioned on augmentation; give augment 0 in all stages",
}


def register(kind: str, summary: str) -> Callable[[Kind], Kind]:
    """Class decorator: the network is `network.kind: KIND` from now on."""

    def add(cls: Kind) -> Kind:
        _KINDS[kind] = (cls, summary)
        return cls

    return add


def kinds() -> dict[str, str]:
    """Names of the networks, each with its line."""
    return {kind: summary for kind, (_, summary) in _KINDS.items()}


def build(
    network: configuration.Network,
    *,
    grid: tuple[int, int],
    patch_dim: int,
    classes: int,
    patch: int = 1,
) -> Backbone:
    """A new network, freshly initialised from torch's global generator.

    `patch` is the side of a patch, P = C·patch².
    Raises UserError for an unknown kind or option, and for widths, depths and heads that do not
    fit one another.
    """
    if network.kind not in _KINDS:
        hint = _meant(network.kind, list(_KINDS))
        raise UserError(f"network.kind '{network.kind}' does not exist; {hint}")
    if network.heads < 1 or network.width < 1 or network.width % network.heads:
        raise UserError(
            f"network.width {network.width} is not divisible by network.heads {network.heads}; "
            f"give a width that is a multiple of heads"
        )
    if network.depth < 1:
        raise UserError(f"network.depth {network.depth}: give at least one block")
    cls, _ = _KINDS[network.kind]
    options = _checked_options(network.kind, cls, network.options)
    arguments = _arguments(cls)
    common = {name: getattr(network, name) for name in _COMMON if name in arguments}
    for name, refusal in _FEATURES.items():
        if name in arguments:
            common[name] = getattr(network, name)
        elif getattr(network, name):
            able = [k for k, (c, _) in _KINDS.items() if name in _arguments(c)]
            raise UserError(
                f"{refusal.format(network.kind)}, or use network.kind {' or '.join(able)}"
            )
    if "patch" in arguments:
        common["patch"] = patch
    return cls(grid=grid, patch_dim=patch_dim, classes=classes, **common, **options)


def check_hidden(
    backbone: Backbone, network: configuration.Network, noise: configuration.Noise
) -> None:
    """Raise UserError if a loss on hidden patches is asked of a network that has no decoder."""
    if noise.hidden_weight and not backbone.predicts_hidden:
        able = [kind for kind, (cls, _) in _KINDS.items() if cls.predicts_hidden]
        raise UserError(
            f"noise.hidden_weight {noise.hidden_weight:g} needs a network with a decoder, which "
            f"{network.kind} has not; use 0, or network.kind {' or '.join(able)}"
        )


def check_features(backbone: Backbone, noise: configuration.Noise) -> None:
    """Raise UserError if the network is too narrow for what it is to predict.

    Noise fills all P numbers of a patch, so predicting it, alone or in a mixture with x0 (eps, v,
    flow, score, edm), takes P features. Images lie near a surface of far fewer dimensions: x0 can
    be predicted through fewer (Li and He 2025, arXiv 2511.13720).

    Asked before training alone: weights that were trained so can still be loaded.
    """
    if noise.prediction != "x0" and backbone.patch_dim > backbone.features:
        raise UserError(
            f"a patch has {backbone.patch_dim} numbers and the network {backbone.features} "
            f"features at its narrowest, but noise.prediction {noise.prediction} needs one for "
            "each number and would give samples of pure noise; give --noise.prediction x0 "
            "--noise.weighting velocity, a wider network or a smaller --space.patch"
        )


# Layers at either end of a network, and those that see one vector an image: time, label and what
# they modulate. Their names, or those of the modules that they are in.
_OUTER = {
    *("embed", "head", "time", "augment_embedding", "modulation"),
    *("conv_in", "conv_out", "time_embedding", "time_emb_proj"),  # a U-Net's
}


def hidden_matrices(network: nn.Module) -> dict[str, int]:
    """Names of the weights inside a network's blocks that map features to features of tokens.

    Those of linear layers and of convolutions that are not depthwise; a layer called `qkv` has
    three matrices in its weight [3·w, w], one above the other, all others one: the number is given.

    Not among them: the layers where patches enter and leave, tables, and modulations, whose
    gradients have no more dimensions than a step has images.
    """
    found = {}
    for name, module in network.named_modules():
        path = name.split(".")
        dense = isinstance(module, nn.Conv2d) and module.groups == 1
        if (dense or isinstance(module, nn.Linear)) and not _OUTER.intersection(path):
            found[f"{name}.weight"] = 3 if path[-1] == "qkv" else 1
    return found


def _arguments(cls: type[Backbone]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__init__).parameters


def _checked_options(kind: str, cls: type[Backbone], options: dict[str, Any]) -> dict[str, Any]:
    """`options` if each is an argument of this kind's own, of the type of its default."""
    shared = {"self", "grid", "patch_dim", "classes", "patch", *_COMMON, *_FEATURES}
    arguments = _arguments(cls)
    known = {name: a.default for name, a in arguments.items() if name not in shared}
    checked = {}
    for name, value in options.items():
        if name not in known:
            hint = _meant(name, list(known)) if known else f"{kind} has no options of its own"
            raise UserError(f"network.options: '{name}' is not an option of {kind}; {hint}")
        expected = type(known[name])
        if expected is tuple:  # YAML has lists, a flag with one value has none
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        wrong = type(value) is not expected and not (expected is float and type(value) is int)
        if wrong or (expected is tuple and any(type(v) is not type(known[name][0]) for v in value)):
            raise UserError(
                f"network.options.{name}: expected a value like {known[name]!r}, got {value!r}"
            )
        checked[name] = value
    return checked


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else f"use {', '.join(known)}"


# --- another resolution, other labels -------------------------------------------------------------


def interpolate_positions(
    state: State, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> State:
    """A copy of the weights `state` whose patch positions cover the same image on another grid.

    Learned positions (`positions.weight` [N, width]) are resampled bicubically; the coordinates of
    fixed ones (`positions.rows` [h], `positions.columns` [w]) are spread anew over the old range.
    """
    if old_grid == new_grid:
        return dict(state)
    return {name: _resampled(name, x, old_grid, new_grid) for name, x in state.items()}


def reads_patches(state: State) -> bool:
    """Whether `state` is of a network that reads and writes patches by one linear layer each."""
    return all(name in state and state[name].ndim == 2 for name in ("embed.weight", "head.weight"))


def resample_patches(state: State, old: int, new: int) -> State:
    """A copy of `state` for patches of `new` × `new` pixels in place of `old` × `old`.

    The layers that read and write patches are resampled by area. An image enlarged k times by
    repeating its pixels becomes the same tokens as before, and each pixel that is written is
    repeated; fewer pixels are written as averages (after FlexiViT: Beyer et al. 2023,
    arXiv 2212.08013).
    """
    found = dict(state)
    for name, axis, gain in (
        ("embed.weight", 1, (old / new) ** 2),
        ("head.weight", 0, 1.0),
        ("head.bias", 0, 1.0),
    ):
        rows = state[name].float().movedim(axis, -1)  # [..., C·old²]
        planes = rows.unflatten(-1, (-1, old, old)).flatten(0, -3)[:, None]
        planes = F.interpolate(planes, size=(new, new), mode="area") * gain
        rows = planes.reshape(*rows.shape[:-1], -1).movedim(-1, axis)
        found[name] = rows.contiguous().to(state[name].dtype)
    return found


def is_augment_embedding(name: str) -> bool:
    """Whether the weight `name` tells the network of augmentation: zero before it is trained."""
    return name.split(".")[-2:] == ["augment_embedding", "weight"]


def is_label_table(name: str) -> bool:
    """Whether the weight `name` has a row a class: what changes when the labels do."""
    return name.split(".")[-2:] == ["labels", "weight"]


def _resampled(name: str, x: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    match name.split(".")[-2:]:
        case ["positions", "weight"]:
            table = x.float().unflatten(0, old).permute(2, 0, 1)[None]  # [1, width, h, w]
            table = F.interpolate(table, size=new, mode="bicubic", antialias=True)
            return table[0].flatten(1).T.contiguous().to(x.dtype)
        case ["positions", "rows" | "columns" as axis]:
            length, wanted = (old[0], new[0]) if axis == "rows" else (old[1], new[1])
            step = (x[-1] - x[0]) / (length - 1) if length > 1 else x.new_ones(())
            # the middles of the new patches, counted in old patches from the first one's middle
            middles = (torch.arange(wanted, dtype=x.dtype, device=x.device) + 0.5) / wanted
            return x[0] + step * (middles * length - 0.5)
    return x
