"""What every network promises, and that one file and one registration are enough for a new one."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import systems
from tests.toy import toy  # noqa: F401
from underpaint import backbones, config
from underpaint.backbones import base, layers
from underpaint.core import augmentation, masks, preconditioning, schedules
from underpaint.core.denoiser import Denoiser
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError

GRID, P, PATCH, CLASSES, B = (4, 6), 12, 2, 3, 4
KINDS = systems.NETWORKS
pytestmark = pytest.mark.usefixtures("toy")
MASKS = [(kind, rate) for kind in ("patch", "block", "crop") for rate in (0.5, 0.75)]


def network(kind, **changes):
    own = {
        "maskdit": {
            "options": {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2},
        },
        "unet": {"depth": 1, "options": {"multipliers": [1, 2]}},
    }.get(kind, {})
    return config.Network(kind=kind, **{"width": 32, "depth": 3, "heads": 2, **own, **changes})


def build(kind, *, grid=GRID, classes=CLASSES, stir=0.1, seed=0, **changes):
    """A small network; `stir` moves every weight, since some networks start as zero."""
    torch.manual_seed(seed)
    backbone = backbones.build(
        network(kind, **changes), grid=grid, patch_dim=P, classes=classes, patch=PATCH
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(stir * torch.randn_like(parameter))
    return backbone


def draw(backbone, kind, rate, batch=B, seed=0):
    spec = MaskSpec(kind, rate, unit=backbone.unit)
    return masks.draw(spec, backbone.grid, batch, torch.Generator().manual_seed(seed))


def inputs(count, batch=B, seed=1):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch, count, P, generator=generator)
    return patches, 1000 * torch.rand(batch, generator=generator)


def loss_and_gradients(backbone, patches, noises, labels, mask):
    """Of clean patches and noise of whole images [B, N, P]."""
    denoiser = Denoiser(backbone, schedules.build("flow"), preconditioning.build("flow", "flow"))
    backbone.zero_grad(set_to_none=True)
    t = torch.linspace(0.1, 0.9, len(patches))
    patches, noises = (masks.gather(x, mask.visible) for x in (patches, noises))
    loss = DenoisingLoss(denoiser)(patches, labels, mask, t, noises)
    loss.mean.backward()
    return loss, {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mask_kind", "rate"), MASKS)
def test_hidden_pixels_change_nothing(kind, mask_kind, rate):
    backbone = build(kind)
    mask = draw(backbone, mask_kind, rate)
    (patches, _), (noises, _) = inputs(24), inputs(24, seed=2)
    labels = torch.tensor([0, 1, 2, -1])
    loss, gradients = loss_and_gradients(backbone, patches, noises, labels, mask)
    hidden = mask.hidden[..., None].expand(-1, -1, P)
    for x in (patches, noises):
        x.scatter_(1, hidden, math.nan)
    poisoned, poisoned_gradients = loss_and_gradients(backbone, patches, noises, labels, mask)
    for a, b in zip(loss, poisoned, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert torch.equal(gradient, poisoned_gradients[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mask_kind", "rate"), MASKS)
def test_output_has_the_shape_of_the_visible_part(kind, mask_kind, rate):
    backbone = build(kind)
    mask = draw(backbone, mask_kind, rate)
    patches, c_noise = inputs(24)
    seen = masks.gather(patches, mask.visible)
    F = backbone(seen, c_noise, torch.zeros(B, dtype=torch.long), mask)
    assert isinstance(F, base.Prediction)
    assert F.visible.shape == (B, mask.visible.shape[1], P)
    assert F.hidden is None or F.hidden.shape == (B, mask.hidden.shape[1], P)


@pytest.mark.parametrize("kind", KINDS)
def test_all_patches_visible_is_the_whole_image(kind):
    backbone = build(kind)
    everything = torch.arange(24).expand(B, 24)
    mask = masks.Mask(GRID, everything, torch.empty(B, 0, dtype=torch.long))
    (patches, _), (noises, _) = inputs(24), inputs(24, seed=2)
    labels = torch.tensor([0, 1, 2, -1])
    given, given_gradients = loss_and_gradients(backbone, patches, noises, labels, mask)
    plain, gradients = loss_and_gradients(backbone, patches, noises, labels, masks.Mask(GRID))
    assert torch.equal(given.per_image, plain.per_image)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, given_gradients[name]), name


def rank_a_patch(backbone):
    """Rank of ∂F/∂patches of a whole image, over the number of its patches."""
    N, mask = math.prod(backbone.grid), masks.Mask(backbone.grid)
    x = torch.randn(N * backbone.patch_dim)

    def output(x):
        patches, c_noise = x.view(1, N, -1), torch.tensor([0.5])
        return backbone(patches, c_noise, None, mask).visible.flatten()

    jacobian = torch.autograd.functional.jacobian(output, x)  # [N·P, N·P]
    return int(torch.linalg.matrix_rank(jacobian.double(), rtol=1e-5)) / N


NARROW = {  # the narrowest place: beside the width, a decoder and channels of a pixel
    "maskdit": [
        {"options": {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 1}},
        {"width": 12, "options": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 1}},
    ],
    "unet": [{"width": 4, "heads": 1, "depth": 1, "options": {"multipliers": [1, 2]}}],
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(kind, changes) for kind in KINDS for changes in NARROW.get(kind, [{"width": 16}])],
)
def test_features_are_the_rank_of_what_passes_through(kind, changes):
    """A network that claims more would train what it cannot predict; less, refuse what it can."""
    changes = {"depth": 2, **changes}
    for patch_dim in (48, 4):
        torch.manual_seed(0)
        backbone = backbones.build(
            network(kind, **changes), grid=(2, 2), patch_dim=patch_dim, classes=0, patch=2
        )
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        most, found = min(patch_dim, backbone.features), rank_a_patch(backbone)
        assert most - 2 <= found <= most  # a norm takes two directions of a token


FEW = [
    ("dit", {"width": 8}, 12, 8),
    ("uvit", {"width": 8}, 12, 8),
    ("toy", {"width": 8}, 12, 8),
    ("hourglass", {"width": 8}, 12, 8),
    ("maskdit", {"options": {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 1}}, 12, 8),
    ("unet", {"width": 4, "heads": 1, "options": {"multipliers": [1, 2]}}, 24, 16),
]


@pytest.mark.parametrize(("kind", "changes", "patch_dim", "features"), FEW)
def test_a_network_too_narrow_for_noise_is_refused(kind, changes, patch_dim, features):
    settings = network(kind, **{"depth": 1, **changes})
    few, enough = (
        backbones.build(settings, grid=(2, 2), patch_dim=P, classes=0, patch=2)
        for P in (patch_dim, features)
    )
    for prediction in ("eps", "v", "flow", "score", "edm"):
        kind = config.Noise(prediction=prediction)
        backbones.check_features(enough, kind)
        with pytest.raises(UserError) as refused:
            backbones.check_features(few, kind)
        says = str(refused.value)
        assert f"a patch has {patch_dim} numbers and the network {features} features" in says
        assert "--noise.prediction x0" in says
        assert "\n" not in says
    backbones.check_features(few, config.Noise(prediction="x0"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.75])
@pytest.mark.parametrize("labels", ["real", "null", "unconditional"])
def test_every_parameter_gets_a_gradient(kind, rate, labels):
    backbone = build(kind, classes=0 if labels == "unconditional" else CLASSES)
    ids = {"real": torch.tensor([0, 1, 2, 0]), "null": torch.full((B,), -1)}.get(labels)
    (patches, _), (noises, _) = inputs(24), inputs(24, seed=2)
    _, gradients = loss_and_gradients(backbone, patches, noises, ids, draw(backbone, "patch", rate))
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    moving = [name for name, gradient in gradients.items() if gradient.any()]
    still = set(gradients) - set(moving)
    if rate == 0:
        still -= {"decoder.mask_token.weight"}  # nothing is hidden
    assert all(base.is_label_table(name) for name in still), still


@pytest.mark.parametrize("kind", KINDS)
def test_labels_time_and_place_matter(kind):
    backbone = build(kind, stir=0.3)
    mask = draw(backbone, "patch", 0.5, batch=1)
    patches, c_noise = inputs(12, batch=1)
    label = torch.tensor([1])
    F = backbone(patches, c_noise, label, mask).visible
    elsewhere = masks.Mask(GRID, mask.hidden, mask.visible)
    for other in (
        backbone(patches, c_noise, torch.tensor([-1]), mask),
        backbone(patches, c_noise, torch.tensor([2]), mask),
        backbone(patches, c_noise + 100, label, mask),
        backbone(patches, c_noise, label, elsewhere),
    ):
        assert (F - other.visible).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_missing_labels_are_an_error(kind):
    patches, c_noise = inputs(24)
    with pytest.raises(ValueError, match="labels"):
        build(kind)(patches, c_noise, None, masks.Mask(GRID))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_another_grid_is_an_error(kind):
    patches, c_noise = inputs(24)
    with pytest.raises(ValueError, match="grid"):
        build(kind, classes=0)(patches, c_noise, None, masks.Mask((6, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_see_one_another(kind):
    backbone = build(kind)
    mask = draw(backbone, "patch", 0.5)
    patches, c_noise = inputs(12)
    labels = torch.tensor([0, 1, 2, -1])
    F = backbone(patches, c_noise, labels, mask).visible
    for b in range(B):
        one = masks.Mask(GRID, mask.visible[b, None], mask.hidden[b, None])
        alone = backbone(patches[b, None], c_noise[b, None], labels[b, None], one).visible
        torch.testing.assert_close(alone[0], F[b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_determines_the_weights(kind):
    first, again, other = (build(kind, stir=0, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.75])
@pytest.mark.parametrize(("mask_kind", "classes"), [("patch", CLASSES), ("crop", 0)])
def test_flops_are_counted(kind, rate, mask_kind, classes):
    """At a wide network on many patches, with labels and without; all rates: tests/test_matrix."""
    grid = (16, 16)
    backbone = build(kind, grid=grid, width=64, classes=classes, mlp_ratio=3.0)
    mask = draw(backbone, mask_kind, rate, batch=2)
    V = masks.visible_count(MaskSpec(mask_kind, rate, unit=backbone.unit), grid)
    patches, c_noise = inputs(V, batch=2)
    labels = torch.tensor([0, -1]) if classes else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone(patches, c_noise, labels, mask)
    assert backbone.flops(V, mask_kind) == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(k, {}) for k in KINDS] + [(k, {"qk_norm": True}) for k in ("uvit", "dit", "maskdit")],
)
@pytest.mark.parametrize(("mask_kind", "rate"), [("none", 0.0), ("patch", 0.75), ("crop", 0.75)])
@pytest.mark.parametrize("bytes_per", [4, 2])
def test_activation_bytes_are_counted(kind, changes, mask_kind, rate, bytes_per):
    """What a further image adds to the tensors that autograd keeps."""
    grid = (16, 16)
    backbone = build(kind, grid=grid, width=64, **changes)
    weights = {p.data_ptr() for p in backbone.parameters()}
    V = masks.visible_count(MaskSpec(mask_kind, rate, unit=backbone.unit), grid)

    def kept(batch):
        found = {}

        def keep(x):
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights and x.is_floating_point():
                found[storage.data_ptr()] = storage
            return x

        patches, c_noise = inputs(V, batch=batch)
        labels = torch.arange(batch) % 4 - 1
        mask = draw(backbone, mask_kind, rate, batch=batch)
        half = torch.autocast("cpu", torch.bfloat16, enabled=bytes_per == 2)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), half:
            F = backbone(patches, c_noise, labels, mask)  # keeps the graph alive
        assert F.visible.requires_grad
        return sum(storage.nbytes() for storage in found.values())

    measured = (kept(8) - kept(4)) / 4
    assert backbone.activation_bytes(V, mask_kind, bytes_per) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new_grid", [(8, 12), (2, 3), (5, 9)])
def test_weights_move_to_another_grid(kind, new_grid):
    old = build(kind)
    new_grid = tuple(-(-side // old.unit) * old.unit for side in new_grid)  # of whole units
    new = build(kind, grid=new_grid, seed=5)
    state = {f"backbone.{name}": x for name, x in old.state_dict().items()}
    moved = backbones.interpolate_positions(state, GRID, new_grid)
    new.load_state_dict({name.removeprefix("backbone."): x for name, x in moved.items()})
    patches, c_noise = inputs(new_grid[0] * new_grid[1])
    F = new(patches, c_noise, torch.tensor([0, 1, 2, -1]), masks.Mask(new_grid)).visible
    assert F.isfinite().all()
    same = backbones.interpolate_positions(state, GRID, GRID)
    assert all(torch.equal(same[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", KINDS)
def test_label_tables_are_the_only_difference_between_label_sets(kind):
    none, three, five = (build(kind, classes=c).state_dict() for c in (0, 3, 5))
    tables = {name for name in three if base.is_label_table(name)}
    assert tables
    assert set(none) == set(three) - tables
    differ = {name for name in three if three[name].shape != five[name].shape}
    assert differ == tables


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_once_for_all_masks_of_a_rate(kind):
    torch._dynamo.reset()
    backbone = build(kind)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(backbone, backend=backend, fullgraph=True, dynamic=False)
    labels = torch.tensor([0, 1, 2, -1])
    for seed in range(3):
        mask = draw(backbone, "patch", 0.5, seed=seed)
        patches, c_noise = inputs(12, seed=seed)
        F = compiled(patches, c_noise, labels, mask).visible
        torch.testing.assert_close(F, backbone(patches, c_noise, labels, mask).visible)
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_bfloat16_autocast(kind):
    backbone = build(kind)
    mask = draw(backbone, "patch", 0.5)
    patches, c_noise = inputs(12)
    labels = torch.tensor([0, 1, 2, -1])
    F = backbone(patches, c_noise, labels, mask).visible
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone(patches, c_noise, labels, mask).visible
    assert (F - low.float()).abs().max() < 0.05 * F.abs().max()


@pytest.mark.parametrize("kind", backbones.kinds())
def test_dropout_drops_in_training_alone(kind):
    backbone, mask = build(kind, dropout=0.5), masks.Mask(GRID)
    patches, c_noise = inputs(24)
    labels = torch.tensor([0, 1, 2, -1])

    def twice():
        return [backbone(patches, c_noise, labels, mask).visible for _ in range(2)]

    assert not torch.equal(*twice())
    backbone.eval()
    assert torch.equal(*twice())


# --- query and key norms

NORMED = ["uvit", "dit", "maskdit"]


def pair(kind):
    """A network with query and key norms and one without that computes the same but for them."""
    normed, plain = build(kind, qk_norm=True, stir=0), build(kind, stir=0)
    scales = set(normed.state_dict()) - set(plain.state_dict())
    assert scales
    assert all(name.endswith(("norm_q.weight", "norm_k.weight")) for name in scales)
    return normed, plain, scales


@pytest.mark.parametrize("kind", NORMED)
def test_query_and_key_norms_bound_the_attention(kind):
    attention = next(
        m for m in build(kind, qk_norm=True).modules() if isinstance(m, layers.Attention)
    )
    with torch.no_grad():
        attention.norm_q.weight.fill_(1.0)
        attention.norm_k.weight.fill_(1.0)
    x = torch.randn(2, 5, attention.out.in_features)
    before = attention(x)
    with torch.no_grad():
        width = len(attention.out.weight)
        attention.qkv.weight[: 2 * width] *= 100.0
        if attention.qkv.bias is not None:
            attention.qkv.bias[: 2 * width] *= 100.0
    torch.testing.assert_close(attention(x), before, rtol=1e-4, atol=1e-4)


def test_query_and_key_norms_are_root_mean_squares_a_head():
    torch.manual_seed(0)
    attention = layers.Attention(8, 2, qkv_bias=True, qk_norm=True)
    with torch.no_grad():
        attention.norm_q.weight.copy_(torch.rand(4) + 0.5)
    x = torch.randn(3, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        a = q[..., h] / q[..., h].square().mean(-1, keepdim=True).sqrt() * attention.norm_q.weight
        b = k[..., h] / k[..., h].square().mean(-1, keepdim=True).sqrt()
        heads.append((a @ b.mT / 2).softmax(-1) @ v[..., h])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, dim=2)))


@pytest.mark.parametrize("kind", NORMED)
def test_query_and_key_norms_keep_the_contract(kind):
    normed, plain, scales = pair(kind)
    for name in scales:
        assert torch.equal(
            normed.state_dict()[name], torch.ones(16 if "decoder" not in name else 8)
        )
    assert normed.flops(12) == plain.flops(12)
    assert normed.activation_bytes(12) > plain.activation_bytes(12)
    normed = build(kind, qk_norm=True)  # stirred: the blocks are not the identity
    (patches, _), (noises, _) = inputs(24), inputs(24, seed=2)
    labels, mask = torch.tensor([0, 1, 2, -1]), draw(normed, "patch", 0.5)
    _, gradients = loss_and_gradients(normed, patches, noises, labels, mask)
    assert all(gradients[name].any() for name in scales)


def test_a_network_without_attention_norms_refuses_them():
    with pytest.raises(
        UserError, match=r"network\.qk_norm: unet has no norms.*dit or hourglass or maskdit or uvit"
    ):
        build("unet", qk_norm=True)


# --- augmentation

TOLD = tuple(backbones.kinds())


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("given", [False, True])
def test_what_augmentation_was_is_a_condition(kind, given):
    torch.manual_seed(3)
    fresh, plain = build(kind, augment=True, stir=0), build(kind, stir=0)
    new = {name for name in fresh.state_dict() if base.is_augment_embedding(name)}
    assert new == set(fresh.state_dict()) - set(plain.state_dict()) == {"augment_embedding.weight"}
    assert not fresh.state_dict()["augment_embedding.weight"].any()
    own = sum(p.numel() for name, p in fresh.named_parameters() if base.is_augment_embedding(name))
    assert own == augmentation.CONDITION * (128 if kind == "unet" else 32)
    assert fresh.flops(24) == plain.flops(24) + 2 * own
    backbone, (patches, c_noise) = build(kind, augment=True, stir=0.3), inputs(24)
    labels, mask = torch.tensor([0, 1, 2, -1]), masks.Mask(GRID)
    condition = torch.zeros(B, augmentation.CONDITION)
    F = backbone(patches, c_noise, labels, mask).visible
    assert torch.equal(F, backbone(patches, c_noise, labels, mask, condition=condition).visible)
    condition[1, 0] = 1.0
    told = backbone(patches, c_noise, labels, mask, condition=condition).visible
    assert (told - F)[1].abs().max() > 1e-3
    assert torch.equal(told[[0, 2, 3]], F[[0, 2, 3]])
    output = backbone(patches, c_noise, labels, mask, condition if given else None)
    output.visible.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    assert backbone.augment_embedding.weight.grad.any() == given


def test_a_condition_for_a_network_without_the_layer_is_an_error():
    patches, c_noise = inputs(24)
    for kind in TOLD:
        with pytest.raises(ValueError, match="condition"):
            build(kind, classes=0)(patches, c_noise, None, masks.Mask(GRID), torch.zeros(B, 9))
    with pytest.raises(UserError, match="toy cannot be conditioned on augmentation; give"):
        build("toy", augment=True)


def test_a_u_net_without_labels_takes_augmentation():
    backbone, (patches, c_noise) = build("unet", classes=0, augment=True), inputs(24)
    mask, condition = masks.Mask(GRID), torch.zeros(B, augmentation.CONDITION)
    F = backbone(patches, c_noise, None, mask).visible
    assert torch.equal(F, backbone(patches, c_noise, None, mask, condition).visible)
    condition[1, 0] = 1.0
    told = backbone(patches, c_noise, None, mask, condition).visible
    assert (told - F)[1].abs().max() > 1e-3
    assert torch.equal(told[[0, 2, 3]], F[[0, 2, 3]])
    plain = build("unet", classes=0)  # draws the same weights but for those that tell
    assert backbone.flops(24) == plain.flops(24) + 2 * 128 * augmentation.CONDITION


# --- the table of networks


def test_one_registration_is_enough():
    assert backbones.kinds()["toy"] == "a network of the tests"
    assert build("toy", options={"share": 0.25}).share == 0.25
    assert build("toy", options={"share": 1}).share == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "uvitt"}, "'uvitt' does not exist; did you mean 'uvit'"),
        ({"width": 33}, "width 33 is not divisible by network.heads 2"),
        ({"heads": 0}, "heads 0"),
        ({"depth": 0}, "depth 0"),
        ({"kind": "uvit", "width": 33, "heads": 3}, "even"),
        ({"kind": "dit", "width": 34}, "divisible by 4"),
        ({"kind": "toy", "options": {"shaer": 0.5}}, "'shaer' is not an option of toy.*'share'"),
        ({"kind": "toy", "options": {"share": "half"}}, "expected a value like 0.5, got 'half'"),
        ({"kind": "dit", "options": {"share": 0.5}}, "dit has no options of its own"),
    ],
)
def test_impossible_networks_are_refused_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as raised:
        backbones.build(network(**{"kind": "uvit", **changes}), grid=GRID, patch_dim=P, classes=0)
    assert "\n" not in str(raised.value)
