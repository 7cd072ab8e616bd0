import math

import pytest
import torch

from tests.backbones.test_contract import loss_and_gradients
from underpaint import config, model
from underpaint.backbones import DiT, MaskDiT
from underpaint.core import masks, preconditioning, schedules
from underpaint.core.denoiser import Denoiser
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError
from underpaint.training import cost

GRID, P, CLASSES, B = (4, 6), 12, 3, 4
LABELS = torch.tensor([0, 1, 2, -1])


def stirred(network):
    with torch.no_grad():  # bridge, modulations and head start at zero
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def small(classes=CLASSES, **changes):
    torch.manual_seed(0)
    sizes = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2, **changes}
    return stirred(MaskDiT(GRID, P, classes, width=32, depth=3, heads=2, **sizes))


def half(seed=0):
    return masks.draw(MaskSpec("patch", 0.5), GRID, B, torch.Generator().manual_seed(seed))


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, 24, P, generator=generator)


C_NOISE = torch.tensor([-1.0, -0.2, 0.3, 0.9])


def test_has_the_published_number_of_parameters():
    with torch.device("meta"):  # ImageNet 256²: latents 32×32×4, p2, 1,000 classes
        network = MaskDiT((16, 16), 16, 1000, width=1152, depth=28, heads=16)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(730, rel=0.01)


@torch.no_grad()
def test_with_an_identity_as_bridge_it_is_a_dit_of_the_summed_depth():
    network = small(decoder_width=32, decoder_heads=2)
    plain = DiT(GRID, P, CLASSES, width=32, depth=3 + 2, heads=2)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("bridge.")}
    deeper = {}
    for name, x in state.items():
        part, _, rest = name.removeprefix("decoder.").partition(".")
        if not name.startswith("decoder."):
            deeper[name] = x
        elif part == "blocks":
            i, _, tail = rest.partition(".")
            deeper[f"blocks.{int(i) + 3}.{tail}"] = x
    plain.load_state_dict(deeper)
    network.bridge.forward = lambda x, c: x
    network.decoder.positions.forward = lambda ids: torch.zeros(())
    whole = masks.Mask(GRID)
    F = network(data(), C_NOISE, LABELS, whole)
    expected = plain(data(), C_NOISE, LABELS, whole).visible
    assert expected.abs().mean() > 0.1
    assert F.hidden is None
    assert (F.visible - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_the_decoder_knows_every_place():
    """Against a decoder that puts tokens back into their places before it adds positions."""
    network, mask = small(), half()
    seen = masks.gather(data(), mask.visible)
    F = network(seen, C_NOISE, LABELS, mask)
    c = torch.nn.functional.silu(network._condition(C_NOISE, LABELS))
    x = network.bridge(network._encode(seen, mask.visible, c), c)  # [B, V, 16]
    places = network.decoder.mask_token.weight.expand(B, 24, 16).clone()
    places.scatter_(1, mask.visible[..., None].expand(-1, -1, 16), x)
    x = places + network.decoder.positions(torch.arange(24).expand(B, 24))
    for block in network.decoder.blocks:
        x = block(x, c)
    output = network._read(x, c)
    for ids, part in ((mask.visible, F.visible), (mask.hidden, F.hidden)):
        torch.testing.assert_close(part, masks.gather(output, ids), rtol=1e-4, atol=1e-5)


def test_starts_as_zero():
    torch.manual_seed(0)
    network = MaskDiT(GRID, P, width=32, depth=2, heads=2, decoder_width=16, decoder_heads=2)
    mask = half()
    F = network(masks.gather(data(), mask.visible), C_NOISE, None, mask)
    assert F.visible.shape == F.hidden.shape == (B, 12, P)
    assert not F.visible.any()
    assert not F.hidden.any()


# --- the loss on hidden patches


def edm(network):
    return Denoiser(network, schedules.build("edm"), preconditioning.build("edm", "edm"))


def hidden_loss(denoiser, patches, n, mask, sigma):
    """The network's output and the hidden loss of clean patches and noise [B, N, P]."""
    x = patches + sigma[:, None, None] * n
    output = denoiser.predict(masks.gather(x, mask.visible), sigma, LABELS, mask)
    hidden = x[:, :0] if mask.hidden is None else masks.gather(x, mask.hidden)
    return output, DenoisingLoss(denoiser).hidden_loss(output, hidden, sigma)


def split(mask, *tensors):
    """The visible and then the hidden patches of each."""
    return [masks.gather(x, ids) for ids in (mask.visible, mask.hidden) for x in tensors]


def test_the_hidden_loss_is_its_formula():
    denoiser, mask, patches, n = edm(small()), half(), data(), data(seed=2)
    sigma = torch.tensor([0.05, 0.5, 2.0, 30.0])
    output, found = hidden_loss(denoiser, patches, n, mask, sigma)
    q = 0.5  # sigma_data
    for b, s in enumerate(sigma.tolist()):
        c_skip, c_out = q**2 / (s**2 + q**2), s * q / math.sqrt(s**2 + q**2)
        total = 0.0
        for i, patch in enumerate(mask.hidden[b].tolist()):
            x = patches[b, patch] + s * n[b, patch]
            mean = x.mean()
            variance = (x - mean).square().sum() / (P - 1)
            D = c_skip * x + c_out * output.hidden[b, i]
            total += (D - (x - mean) / (variance + 1e-6).sqrt()).square().mean().item()
        assert found[b].item() == pytest.approx(total / 12, rel=1e-3)


def test_hidden_pixels_matter_to_the_hidden_loss_alone():
    denoiser, mask, patches, n = edm(small()), half(), data(), data(seed=2)
    sigma = torch.full((B,), 0.7)

    def both():
        x0, noise, hidden, hidden_noise = split(mask, patches, n)
        t = denoiser.process.t(sigma)
        arguments = (x0, LABELS, mask, t, noise, None, hidden, hidden_noise)
        asked = DenoisingLoss(denoiser, hidden_weight=0.1)(*arguments)
        assert torch.equal(asked.x0_mse, DenoisingLoss(denoiser)(*arguments).x0_mse)
        assert torch.equal(asked.per_image.isnan(), hidden.isnan().any(2).any(1))
        loss = DenoisingLoss(denoiser)(*arguments)
        return *hidden_loss(denoiser, patches, n, mask, sigma), loss

    output, hidden, loss = both()
    patches.scatter_(1, mask.hidden[..., None].expand(-1, -1, P), math.nan)
    poisoned, poisoned_hidden, same_loss = both()
    assert torch.equal(output.visible, poisoned.visible)
    assert torch.equal(output.hidden, poisoned.hidden)
    assert torch.equal(loss.per_image, same_loss.per_image)
    assert hidden.isfinite().all()
    assert poisoned_hidden.isnan().all()


def test_the_hidden_loss_of_a_whole_image_is_zero():
    denoiser, whole, sigma = edm(small()), masks.Mask(GRID), torch.full((B,), 0.5)
    _, hidden = hidden_loss(denoiser, data(), data(seed=2), whole, sigma)
    assert hidden.tolist() == [0.0] * B


def test_the_hidden_loss_is_added_by_its_weight_to_an_output_computed_once():
    denoiser, mask, patches, n = edm(small()), half(), data(), data(seed=2)
    sigma = torch.tensor([0.05, 0.5, 2.0, 30.0])
    t = denoiser.process.t(sigma)
    x0, noise, hidden, hidden_noise = split(mask, patches, n)
    plain = DenoisingLoss(denoiser)(x0, LABELS, mask, t, noise)
    _, of_hidden = hidden_loss(denoiser, patches, n, mask, denoiser.process.sigma(t))
    calls, forward = [], denoiser.backbone.forward
    denoiser.backbone.forward = lambda *a: calls.append(a) or forward(*a)
    both = DenoisingLoss(denoiser, hidden_weight=0.3)(
        x0, LABELS, mask, t, noise, None, hidden, hidden_noise
    )
    assert len(calls) == 1
    torch.testing.assert_close(both.per_image, plain.per_image + 0.3 * of_hidden)
    torch.testing.assert_close(both.mean, both.per_image.mean())
    assert torch.equal(both.x0_mse, plain.x0_mse)


def test_every_parameter_learns_from_the_visible_alone():
    network, mask = small(), half()
    _, gradients = loss_and_gradients(network, data(), data(seed=2), LABELS, mask)
    assert gradients["decoder.mask_token.weight"].any()


# --- wrong use


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder_depth": 0}, "decoder_depth 0"),
        ({"decoder_width": 18, "decoder_heads": 4}, "decoder_width 18 is not divisible by"),
        ({"decoder_width": 18, "decoder_heads": 2}, "decoder_width 18: .* divisible by 4"),
        ({"decoder_with": 16}, "'decoder_with' is not an option .* 'decoder_width'"),
    ],
)
def test_impossible_decoders_are_refused(options, words):
    network = config.Network(kind="maskdit", width=32, heads=2, options=options)
    with pytest.raises(UserError, match=words) as raised:
        model.build(config.ModelSpec(network=network))
    assert "\n" not in str(raised.value)


def test_a_hidden_loss_needs_a_decoder():
    spec = config.ModelSpec(noise=config.Noise(hidden_weight=0.1))
    words = r"hidden_weight 0\.1 needs a network with a decoder, which dit has not; .*maskdit"
    with pytest.raises(UserError, match=words):
        model.build(spec)
    run = config.Run(noise=spec.noise, stages={"a": config.Stage(images=64)})
    with pytest.raises(UserError, match=words):
        cost.describe(run, (32, 32), 3)
