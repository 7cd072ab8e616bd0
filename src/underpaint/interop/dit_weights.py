"""Weights of a DiT under diffusers' names, and under those of the paper's authors.

    ours                       diffusers: DiTTransformer2DModel       the authors
    embed                      pos_embed.proj                         x_embedder.proj
    time.0, time.2             …norm1.emb.timestep_embedder.linear_1  t_embedder.mlp.0, .2
    labels                     …norm1.emb.class_embedder              y_embedder
    blocks.i.modulation        transformer_blocks.i.norm1.linear      blocks.i.adaLN_modulation.1
    blocks.i.attention.qkv     …attn1.to_q, to_k, to_v                blocks.i.attn.qkv
    blocks.i.attention.out     …attn1.to_out.0                        blocks.i.attn.proj
    blocks.i.mlp.rise, .fall   …ff.net.0.proj, ff.net.2               blocks.i.mlp.fc1, .fc2
    modulation                 proj_out_1                             final_layer.adaLN_modulation.1
    head                       proj_out_2                             final_layer.linear

- Theirs is a convolution where patches enter, ours a linear layer on (channel, row, column).
- Their head's numbers are in the order row, column, channel, ours as where patches enter.
- diffusers keeps the layers of time and label in every block; those of the first are used last.
- Their null label has a learned row, ours is zero: with the null row added to the time's last bias
  and taken from each label's, both compute the same.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]

NULL_CLASS = 1000  # the number of no label, which diffusers' pipeline always uses
BLOCK = {  # layers of a block that have the same shape, ours: diffusers'
    "modulation": "norm1.linear",
    "attention.out": "attn1.to_out.0",
    "mlp.rise": "ff.net.0.proj",
    "mlp.fall": "ff.net.2",
}
AUTHORS = {  # the same, ours: the authors'
    "modulation": "adaLN_modulation.1",
    "attention.out": "attn.proj",
    "mlp.rise": "mlp.fc1",
    "mlp.fall": "mlp.fc2",
}


def head_out(weight: Tensor, patch: int) -> Tensor:
    """Rows of our head [C·p², …] in the order row, column, channel."""
    return weight.unflatten(0, (-1, patch, patch)).movedim(0, 2).flatten(0, 2)


def head_in(weight: Tensor, patch: int) -> Tensor:
    """The inverse of `head_out`."""
    return weight.unflatten(0, (patch, patch, -1)).movedim(2, 0).flatten(0, 2)


def to_diffusers(state: State, depth: int, patch: int) -> State:
    """The weights of our DiT with labels as those of a `DiTTransformer2DModel`."""
    found = {}
    width = len(state["embed.bias"])
    kernel = state["embed.weight"].unflatten(1, (-1, patch, patch))
    found["pos_embed.proj.weight"], found["pos_embed.proj.bias"] = kernel, state["embed.bias"]
    labels = state["labels.weight"]
    table = labels.new_zeros(NULL_CLASS + 1, width)
    table[: len(labels)] = labels
    for i in range(depth):
        theirs, ours = f"transformer_blocks.{i}.", f"blocks.{i}."
        found[theirs + "norm1.emb.class_embedder.embedding_table.weight"] = table
        for kind in ("weight", "bias"):
            for number in (0, 2):
                layer = f"norm1.emb.timestep_embedder.linear_{number // 2 + 1}.{kind}"
                found[theirs + layer] = state[f"time.{number}.{kind}"]
            qkv = state[f"{ours}attention.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", qkv, strict=True):
                found[f"{theirs}attn1.to_{name}.{kind}"] = part
            for place, name in BLOCK.items():
                found[f"{theirs}{name}.{kind}"] = state[f"{ours}{place}.{kind}"]
    for kind in ("weight", "bias"):
        found[f"proj_out_1.{kind}"] = state[f"modulation.{kind}"]
        found[f"proj_out_2.{kind}"] = head_out(state[f"head.{kind}"], patch)
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def from_diffusers(state: State, depth: int) -> State:
    """The weights of a `DiTTransformer2DModel` by the names of its authors."""
    found = {}
    for kind in ("weight", "bias"):
        found[f"x_embedder.proj.{kind}"] = state[f"pos_embed.proj.{kind}"]
        found[f"final_layer.adaLN_modulation.1.{kind}"] = state[f"proj_out_1.{kind}"]
        found[f"final_layer.linear.{kind}"] = state[f"proj_out_2.{kind}"]
        first = "transformer_blocks.0.norm1.emb.timestep_embedder"
        for number in (0, 2):
            name = f"{first}.linear_{number // 2 + 1}.{kind}"
            found[f"t_embedder.mlp.{number}.{kind}"] = state[name]
        for i in range(depth):
            block = f"transformer_blocks.{i}."
            qkv = [state[f"{block}attn1.to_{name}.{kind}"] for name in "qkv"]
            found[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
            for ours, theirs in BLOCK.items():
                found[f"blocks.{i}.{AUTHORS[ours]}.{kind}"] = state[f"{block}{theirs}.{kind}"]
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    found["y_embedder.embedding_table.weight"] = state[table]
    return found


def diffusers_names(depth: int) -> list[str]:
    """The names of a `DiTTransformer2DModel`."""
    layers = ["pos_embed.proj", "proj_out_1", "proj_out_2"]
    tables = []
    for i in range(depth):
        block = f"transformer_blocks.{i}."
        layers += [f"{block}attn1.to_{name}" for name in "qkv"]
        layers += [f"{block}{name}" for name in BLOCK.values()]
        layers += [f"{block}norm1.emb.timestep_embedder.linear_{n}" for n in (1, 2)]
        tables.append(f"{block}norm1.emb.class_embedder.embedding_table.weight")
    return [*(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")), *tables]


def authors_names(depth: int) -> list[str]:
    """The names of the authors' DiT, but for its fixed positions."""
    layers = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"]
    layers += ["final_layer.adaLN_modulation.1", "final_layer.linear"]
    for i in range(depth):
        layers += [f"blocks.{i}.{name}" for name in ("attn.qkv", *AUTHORS.values())]
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return [*names, "y_embedder.embedding_table.weight"]


def from_authors(state: State, depth: int, classes: int) -> State:
    """The authors' weights, of `classes` and null, as those of our DiT but for its positions.

    A head that also predicts variances loses their half.
    """
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    table = state["y_embedder.embedding_table.weight"]
    null = table[-1]
    found = {
        "embed.weight": state["x_embedder.proj.weight"].flatten(1),
        "embed.bias": state["x_embedder.proj.bias"],
        "labels.weight": table[:classes] - null,
    }
    for kind in ("weight", "bias"):
        for number in (0, 2):
            found[f"time.{number}.{kind}"] = state[f"t_embedder.mlp.{number}.{kind}"]
        found[f"modulation.{kind}"] = state[f"final_layer.adaLN_modulation.1.{kind}"]
        head = state[f"final_layer.linear.{kind}"].unflatten(0, (patch**2, -1))
        found[f"head.{kind}"] = head_in(head[:, :channels].flatten(0, 1), patch)
        for i in range(depth):
            ours, theirs = f"blocks.{i}.", f"blocks.{i}."
            found[f"{ours}attention.qkv.{kind}"] = state[f"{theirs}attn.qkv.{kind}"]
            for name, place in AUTHORS.items():
                found[f"{ours}{name}.{kind}"] = state[f"{theirs}{place}.{kind}"]
    found["time.2.bias"] = found["time.2.bias"] + null
    return {name: tensor.contiguous() for name, tensor in found.items()}
