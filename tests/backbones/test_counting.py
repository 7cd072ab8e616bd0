"""What a network costs: counted without memory, and equal to what its layers cost on paper."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from underpaint.backbones import DiT, UNet, base, counting

GRID, N, P = (4, 6), 24, 12


class Embedding(base.Backbone):
    """One linear layer on what is visible."""

    def __init__(self, grid, patch_dim, classes=0, *, width=16):
        super().__init__(grid, patch_dim, classes)
        self.embed = nn.Linear(patch_dim, width)

    def forward(self, patches, c_noise, labels, mask):
        return base.Prediction(self.embed(patches))


class Attending(Embedding):
    """Self-attention of two heads of what the linear layer gives."""

    def forward(self, patches, c_noise, labels, mask):
        x = self.embed(patches).unflatten(2, (2, -1)).transpose(1, 2)
        return base.Prediction(F.scaled_dot_product_attention(x, x, x))


class Depthwise(base.Backbone):
    """A depthwise convolution on the whole image, whose hidden patches are zero."""

    def __init__(self, grid, patch_dim, classes=0):
        super().__init__(grid, patch_dim, classes)
        self.layer = nn.Conv2d(patch_dim, patch_dim, 5, padding=2, groups=patch_dim)

    def forward(self, patches, c_noise, labels, mask):
        ids = base.position_ids(mask, len(patches), self.grid, patches.device)
        ids = ids[..., None].expand(-1, -1, self.patch_dim)
        places = patches.new_zeros(len(patches), N, self.patch_dim).scatter(1, ids, patches)
        image = places.transpose(1, 2).unflatten(2, self.grid)
        return base.Prediction(self.layer(image).flatten(2).transpose(1, 2).gather(1, ids))


@pytest.mark.parametrize("V", [1, 6, 24])
def test_layers_cost_what_they_cost_on_paper(V):
    linear, attention = 2 * V * P * 16, 4 * V**2 * 16
    assert Embedding(GRID, P).flops(V) == linear
    assert Attending(GRID, P).flops(V) == linear + attention
    assert Depthwise(GRID, P).flops(V) == 2 * N * P * 5 * 5  # not P times as much
    assert Depthwise(GRID, P).flops(V) == Depthwise(GRID, P).flops(N)


@pytest.mark.parametrize("V", [6, 24])
def test_activations_are_what_the_backward_formulas_read(V):
    patches, x = V * P, V * 16
    # attention: q, k and v are one tensor here; its output and, for each head, sums of weights
    kept = patches + x + x + 2 * V
    assert Embedding(GRID, P).activation_bytes(V) == 4 * patches
    assert Attending(GRID, P).activation_bytes(V) == 4 * kept
    assert Embedding(GRID, P).activation_bytes(V, bytes_per=2) == 2 * patches
    assert Attending(GRID, P).activation_bytes(V, fused=False) >= 4 * 2 * V**2  # of two heads


@pytest.mark.parametrize(("classes", "augment"), [(0, False), (3, True)])
def test_a_dit_costs_what_it_costs_on_paper(classes, augment):
    width, depth, V, hidden = 32, 3, 9, 64
    network = DiT(
        GRID, P, classes, width=width, depth=depth, heads=2, mlp_ratio=2.0, augment=augment
    )
    linears = 4 * width**2 + 2 * width * hidden  # q, k, v, out; the MLP
    patches = depth * linears + 2 * P * width  # blocks; into the network and out of it
    image = 256 * width + width**2 + (6 * depth + 2) * width**2  # time; modulations
    image += network.augment_embedding.weight.numel() if augment else 0
    assert network.flops(V) == 2 * V * patches + depth * 4 * V**2 * width + 2 * image


def test_the_whole_image_costs_the_same_under_every_mask():
    network = DiT(GRID, P, width=16, depth=1, heads=2)
    kinds = ("none", "patch", "block", "crop", "salient")
    assert len({network.flops(N, mask) for mask in kinds}) == 1
    assert network.saves(6, "patch")
    assert not network.saves(N, "none")
    assert not Depthwise(GRID, P).saves(6, "patch")
    for V in (0, N + 1):
        with pytest.raises(ValueError, match=f"{V} visible patches: the grid .* has 24"):
            network.flops(V)


def test_an_answer_is_kept_by_shapes():
    def ask():
        network = DiT(GRID, P, width=20, depth=1, heads=2)
        network.flops(7, "patch"), network.flops(7, "block"), network.flops(7, "none")

    counting.flops.cache_clear()
    ask(), ask()
    assert counting.flops.cache_info().misses == 1


def test_counting_leaves_no_trace():
    """The network is as it was, and so is the generator, whatever mode the caller is in."""
    network = DiT(GRID, P, width=24, depth=1, heads=2, dropout=0.5)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        kept = network.activation_bytes(11)
    with torch.device("meta"):
        other = DiT(GRID, P, width=24, depth=1, heads=2, dropout=0.5)
        assert other.activation_bytes(11) == kept
        assert network.flops(11) == network.flops(11, "block")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(network.state_dict()[name], x) for name, x in before.items())


def test_a_list_of_options_can_be_counted():
    network = UNet(GRID, P, 0, patch=2, width=8, depth=1, heads=1, multipliers=[1, 1])
    assert network.flops(N) > 0


def test_nothing_is_counted_before_it_is_asked_for():
    """The compiler takes seconds to import: a network is built and run without it."""
    program = (
        "import sys, torch\n"
        "from underpaint import config\n"
        "from underpaint.model import build\n"
        "model = build(config.ModelSpec(size=(16, 16)))\n"
        "model.sample(1, steps=1)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "model.backbone.flops(4)\n"
        "assert 'torch._dynamo' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
