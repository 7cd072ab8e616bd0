import pytest
import torch

from underpaint.backbones import DiT, interpolate_positions
from underpaint.backbones.layers import SinCosPositions
from underpaint.core import masks
from underpaint.core.spaces import Pixels

WIDTH, DEPTH, HEADS, CLASSES = 32, 3, 2, 5


def small(grid=(4, 4), patch_dim=12, classes=CLASSES):
    torch.manual_seed(0)
    network = DiT(grid, patch_dim, classes, width=WIDTH, depth=DEPTH, heads=HEADS)
    with torch.no_grad():  # adaLN-zero hides every block
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 32.9), (768, 12, 12, 130.3), (1024, 24, 16, 457.8), (1152, 28, 16, 674.8)],
)
def test_has_the_published_number_of_parameters(width, depth, heads, millions):
    with torch.device("meta"):  # 256²: latents 32×32×4, p2, 1,000 classes
        network = DiT((16, 16), 16, 1000, width=width, depth=depth, heads=heads)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.05)


def diffusers_weights(network, space):
    """The weights of `network` in the names and shapes of DiTTransformer2DModel."""
    state, C, p = network.state_dict(), space.channels, space.patch
    theirs = {
        "pos_embed.proj.weight": state["embed.weight"].view(WIDTH, C, p, p),
        "pos_embed.proj.bias": state["embed.bias"],
        "proj_out_1.weight": state["modulation.weight"],
        "proj_out_1.bias": state["modulation.bias"],
        # a patch of theirs comes out as row, column, channel
        "proj_out_2.weight": state["head.weight"].view(C, p, p, WIDTH).permute(1, 2, 0, 3),
        "proj_out_2.bias": state["head.bias"].view(C, p, p).permute(1, 2, 0),
    }
    theirs["proj_out_2.weight"] = theirs["proj_out_2.weight"].reshape(-1, WIDTH)
    theirs["proj_out_2.bias"] = theirs["proj_out_2.bias"].flatten()
    table = torch.cat([state["labels.weight"], torch.zeros(1, WIDTH)])  # null is zero
    for i in range(DEPTH):
        to, own = f"transformer_blocks.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            for theirs_name, name in [
                ("norm1.linear", "modulation"),
                ("attn1.to_out.0", "attention.out"),
                ("ff.net.0.proj", "mlp.rise"),
                ("ff.net.2", "mlp.fall"),
            ]:
                theirs[f"{to}.{theirs_name}.{kind}"] = state[f"{own}.{name}.{kind}"]
            parts = state[f"{own}.attention.qkv.{kind}"].chunk(3)
            for part, letter in zip(parts, "qkv", strict=True):
                theirs[f"{to}.attn1.to_{letter}.{kind}"] = part
            embedder = f"{to}.norm1.emb.timestep_embedder"
            theirs[f"{embedder}.linear_1.{kind}"] = state[f"time.0.{kind}"]
            theirs[f"{embedder}.linear_2.{kind}"] = state[f"time.2.{kind}"]
        theirs[f"{to}.norm1.emb.class_embedder.embedding_table.weight"] = table
    return theirs


@pytest.fixture(scope="module")
def oracle():
    diffusers = pytest.importorskip("diffusers")
    space = Pixels((8, 8), 3, 2)
    network = small()
    torch.manual_seed(1)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=3,
        out_channels=3,
        num_layers=DEPTH,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).eval()
    missing, unexpected = theirs.load_state_dict(diffusers_weights(network, space), strict=False)
    assert missing in ([], ["pos_embed.pos_embed"])
    assert not unexpected
    return space, network, theirs


@torch.no_grad()
def test_is_diffusers_dit(oracle):
    space, network, theirs = oracle
    torch.manual_seed(2)
    images, t = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 500, 999])
    labels = torch.tensor([0, 4, 2, -1])
    expected = theirs(images, t, labels % (CLASSES + 1)).sample  # −1 becomes the table's last row
    F = network(space.encode(images), t.float(), labels, masks.Mask(space.grid))
    assert expected.abs().mean() > 0.1
    assert (space.decode(F.visible) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (4, 4)])
def test_positions_are_diffusers_on_any_grid(grid):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    # theirs is right for squares alone: ours on any grid is a corner of the square
    square = embeddings.get_2d_sincos_pos_embed(WIDTH, 8, base_size=8).view(8, 8, WIDTH)
    h, w = grid
    ids = torch.arange(h * w)[None]
    ours = SinCosPositions(grid, WIDTH)(ids)[0].view(h, w, WIDTH)
    torch.testing.assert_close(ours.double(), square[:h, :w].double(), rtol=0, atol=1e-6)


def test_starts_as_zero_and_every_block_as_identity():
    torch.manual_seed(0)
    network = DiT((4, 4), 12, 0, width=WIDTH, depth=DEPTH, heads=HEADS)
    patches, c_noise = torch.randn(2, 16, 12), torch.tensor([10.0, 900.0])
    F = network(patches, c_noise, None, masks.Mask((4, 4)))
    assert not F.visible.any()
    x, c = torch.randn(2, 16, WIDTH), torch.randn(2, WIDTH)
    assert torch.equal(network.blocks[0](x, c), x)


def test_the_null_label_is_the_zero_vector():
    network = small()
    patches, c_noise, null = torch.randn(1, 16, 12), torch.tensor([500.0]), torch.tensor([-1])
    before = network(patches, c_noise, null, masks.Mask((4, 4))).visible
    with torch.no_grad():
        network.labels.weight.fill_(7)
    assert torch.equal(before, network(patches, c_noise, null, masks.Mask((4, 4))).visible)
    with torch.no_grad():
        network.labels.weight.zero_()
    zero = network(patches, c_noise, torch.tensor([0]), masks.Mask((4, 4))).visible
    assert torch.equal(before, zero)


def test_coordinates_spread_over_the_same_image():
    state = small(grid=(4, 6)).state_dict()
    finer = interpolate_positions(state, (4, 6), (8, 12))
    assert finer["positions.rows"].tolist() == [i / 2 - 0.25 for i in range(8)]
    assert finer["positions.columns"].tolist() == [j / 2 - 0.25 for j in range(12)]
    coarser = interpolate_positions(state, (4, 6), (2, 3))
    assert coarser["positions.rows"].tolist() == [0.5, 2.5]
    back = interpolate_positions(finer, (8, 12), (4, 6))  # nothing is lost on the way
    torch.testing.assert_close(back["positions.rows"], state["positions.rows"])
