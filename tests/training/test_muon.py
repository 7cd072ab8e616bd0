"""Muon: its matrices, their orthogonal factor, its steps beside torch's, and what it costs."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz
from torch.utils.flop_counter import FlopCounterMode

from tests.training.runs import metrics, weights
from underpaint import backbones, config
from underpaint.compare import study
from underpaint.errors import UserError
from underpaint.training import cost, distributed, handover, muon, stages, train
from underpaint.training.checkpointing import Progress
from underpaint.training.muon import COEFFICIENTS, LEAST, orthogonalize
from underpaint.training.optim import build_optimizer, optimizer_state, restore_optimizer
from underpaint.training.train_state import TrainState

CPU = torch.device("cpu")
TORCHS = (3.4445, -4.7750, 2.0315)


def with_singular_values(rows: int, columns: int, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix U Σ Vᵀ with random U and V, and both of these."""
    U, _ = torch.linalg.qr(torch.randn(rows, len(values)))
    V, _ = torch.linalg.qr(torch.randn(columns, len(values)))
    return U @ values.diag() @ V.T, U, V


def test_the_polynomials_are_the_best_of_degree_five() -> None:
    """Each is nearest to 1 on what the one before leaves: its error is largest at four."""
    low, high = LEAST, 1.0
    for a, b, c in COEFFICIENTS:
        x = torch.linspace(low, high, 200_001, dtype=torch.float64)
        error = a * x + b * x**3 + c * x**5 - 1
        most = float(error.abs().max())
        touched = error[error.abs() > most - 1e-4].sign()
        assert 1 + (touched[1:] != touched[:-1]).sum() == 4
        low, high = 1 - most, 1 + most
    assert most < 0.156


@pytest.mark.parametrize("shape", [(48, 48), (24, 96), (96, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_one_and_their_vectors_stay(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    exact = dtype == torch.float32
    values = torch.logspace(0, -1.5, min(shape))  # from 1 to 0.03
    eighth = float(values.pow(8).sum() ** 0.125)
    assert values.min() / eighth > 1.01 * LEAST
    for scale in (1.0, 1e-9, 1e6):
        x, U, V = with_singular_values(*shape, scale * values)
        found = U.T @ orthogonalize(x[None], dtype)[0].float() @ V
        off = (found.diagonal() - 1).abs()
        assert off.max() < (0.156 if exact else 0.4)
        assert off.quantile(0.9) < (0.156 if exact else 0.2)
        left = found - found.diagonal().diag()
        assert torch.linalg.matrix_norm(left, 2) < (1e-3 if exact else 0.2)


def test_zeros_and_single_directions() -> None:
    torch.manual_seed(0)
    one = torch.randn(16, 1) @ torch.randn(1, 24)
    found = orthogonalize(torch.stack([torch.zeros(16, 24), one]))
    assert not found[0].any()
    assert torch.linalg.matrix_norm(found[1], 2) == pytest.approx(1, abs=0.156)


def test_matrices_in_a_stack_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16, 24) * torch.tensor([1.0, 1e3, 1e-5])[:, None, None]
    alone = torch.cat([orthogonalize(one[None]) for one in x])
    torch.testing.assert_close(orthogonalize(x), alone, rtol=0, atol=1e-5)


# --- beside torch.optim.Muon ----------------------------------------------------------------------


class Block(nn.Module):
    """A layer of three matrices, one of one, a convolution, and what AdamW moves."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.qkv = nn.Linear(16, 48)
        self.fall = nn.Linear(64, 16)
        self.convolution = nn.Conv2d(4, 6, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)


def torchs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch.optim.Muon does with each matrix, which is always in bf16."""
    return torch.stack([_zeropower_via_newtonschulz(one, TORCHS, 5, 1e-7) for one in x])


def test_all_but_the_iteration_is_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit over several steps, and AdamW moves the rest as it does alone."""
    monkeypatch.setattr(muon, "orthogonalize", torchs)
    torch.manual_seed(0)
    model = Block()
    settings = config.Train(optimizer="muon", weight_decay=0.1)
    ours = build_optimizer(model, settings, CPU)
    q, k, v = (nn.Parameter(x.clone()) for x in model.qkv.weight.detach().chunk(3))
    fall = nn.Parameter(model.fall.weight.detach().clone())
    flat = nn.Parameter(model.convolution.weight.detach().flatten(1).clone())
    theirs = torch.optim.Muon(
        [q, k, v, fall, flat], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    alone = Block()
    alone.load_state_dict(model.state_dict())
    adamw = build_optimizer(alone, config.Train(weight_decay=0.1), CPU)
    for number in range(5):
        rate = 0.01 / (1 + number)
        for optimizer in (ours, theirs, adamw):
            for group in optimizer.param_groups:
                group["lr"] = rate
        for p, same in zip(model.parameters(), alone.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            same.grad = p.grad.clone()
        for p, grad in zip((q, k, v), model.qkv.weight.grad.chunk(3), strict=True):  # type: ignore[union-attr]
            p.grad = grad
        fall.grad = model.fall.weight.grad
        flat.grad = model.convolution.weight.grad.flatten(1)  # type: ignore[union-attr]
        for optimizer in (ours, theirs, adamw):
            optimizer.step()
    assert torch.equal(model.qkv.weight, torch.cat([q, k, v]))
    assert torch.equal(model.fall.weight, fall)
    assert torch.equal(model.convolution.weight.flatten(1), flat)
    for layer in ("embed", "depthwise"):
        one, two = getattr(model, layer), getattr(alone, layer)
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)
    assert torch.equal(model.qkv.bias, alone.qkv.bias)


def test_the_iteration_points_where_torchs_does() -> None:
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (1, 32, 128)):
        x = torch.randn(shape)
        ours, theirs = orthogonalize(x), torchs(x, torch.bfloat16).float()
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.95


# --- which weights --------------------------------------------------------------------------------


def network(kind: str, **options: object) -> backbones.Backbone:
    settings = config.Network(kind=kind, width=32, depth=3, heads=2, options=dict(options))
    with torch.device("meta"):
        return backbones.build(settings, grid=(4, 4), patch_dim=12, classes=3, patch=2)


def test_the_matrices_of_a_dit() -> None:
    found = backbones.hidden_matrices(network("dit"))
    of_a_block = {"attention.qkv": 3, "attention.out": 1, "mlp.rise": 1, "mlp.fall": 1}
    assert found == {
        f"blocks.{i}.{name}.weight": k for i in range(3) for name, k in of_a_block.items()
    }


def test_the_matrices_of_other_networks() -> None:
    uvit = backbones.hidden_matrices(network("uvit"))
    assert {"skips.0.weight", "middle.mlp.rise.weight", "late.0.attention.qkv.weight"} < set(uvit)
    assert len(uvit) == 3 * 4 + 1
    maskdit = network("maskdit", decoder_width=16, decoder_depth=2, decoder_heads=2)
    found = set(backbones.hidden_matrices(maskdit))
    assert {"bridge.linear.weight", "decoder.blocks.1.attention.out.weight"} < found
    assert not any("modulation" in name for name in found)


def test_the_matrices_of_a_unet() -> None:
    pytest.importorskip("diffusers")
    found = backbones.hidden_matrices(network("unet", multipliers=(1, 2)))
    assert "unet.down_blocks.0.resnets.0.conv1.weight" in found
    assert "unet.mid_block.attentions.0.to_q.weight" in found
    assert not any("conv_in" in n or "conv_out" in n or "time" in n for n in found)
    assert set(found.values()) == {1}


def test_a_network_without_blocks_is_refused() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    with pytest.raises(UserError, match=r"train\.optimizer muon .* has none; give adamw"):
        build_optimizer(Ends(), config.Train(optimizer="muon"), CPU)


def test_a_private_stage_refuses_it(recipe: config.Run) -> None:
    recipe.stages["whole"].dp = config.DP(epsilon=8)
    recipe.network.dropout = 0.0
    recipe.train.optimizer = "muon"
    with pytest.raises(UserError, match=r"train\.optimizer muon: stages\.whole\.dp is made for"):
        config.check(recipe)


# --- what it costs --------------------------------------------------------------------------------


def test_flops_are_those_of_its_products() -> None:
    model = Block()
    optimizer = build_optimizer(model, config.Train(optimizer="muon"), CPU)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    asked = muon.flops({model.qkv.weight: 3, model.fall.weight: 1, model.convolution.weight: 1})
    assert counter.get_total_flops() == asked


@pytest.fixture
def small(recipe: config.Run) -> config.Run:
    """By Muon, on one stage of masks and one of whole images."""
    recipe.train.optimizer = "muon"
    return recipe


def test_a_recipe_is_said_to_cost_what_its_run_does(small: config.Run, tmp_path: Path) -> None:
    found = cost.describe(small, (16, 16), 3, classes=2)
    out = train(small, tmp_path / "run", quiet=True)
    last = [m for m in metrics(out) if m["kind"] == "stage"][-1]
    assert last["flops"] == pytest.approx(found["flops"], rel=1e-9)
    steps = {m["stage"]: m for m in metrics(out) if m["kind"] == "step"}
    small.train.optimizer = "adamw"
    plain = cost.describe(small, (16, 16), 3, classes=2)
    matrices = {"q, k, v, out": (4, 64, 64), "rise, fall": (2, 64, 256)}
    a_step = 3 * sum(n * 3 * (4 * s * s * t + 2 * s**3) for n, s, t in matrices.values())
    for more, less in zip(found["stages"], plain["stages"], strict=True):
        assert less["optimizer_flops_per_image"] == 0
        assert more["optimizer_flops_per_image"] == a_step / 8
        assert more["flops_per_image"] == less["flops_per_image"] + a_step / 8
        assert more["whole_flops_per_image"] == less["whole_flops_per_image"] + a_step / 8
        assert steps[more["name"]]["flops_per_image"] == more["flops_per_image"]
        numbers = 3 * (4 * 64 * 64 + 2 * 64 * 256)
        assert less["memory"] - more["memory"] == 4 * numbers  # one buffer instead of two


def test_a_studys_arm_pays_for_it(small: config.Run) -> None:
    """At equal compute it makes fewer steps."""
    images = {}
    for name in ("adamw", "muon"):
        run = dataclasses.replace(small, train=dataclasses.replace(small.train, optimizer=name))
        scaled = study.scaled(run, {}, 4e11, 1.0, (16, 16), 3, 2)
        stage = cost.describe(scaled, (16, 16), 3, 2)["stages"][1]
        batch = stage["flops_per_image"] * stage["batch"]
        assert stage["flops"] == pytest.approx(2e11, abs=0.5 * batch + 1)
        images[name] = stage["images"]
    assert images["muon"] < images["adamw"]


# --- runs -----------------------------------------------------------------------------------------


def test_it_keeps_one_tensor_of_each_matrix(small: config.Run, tmp_path: Path) -> None:
    out = train(small, tmp_path / "run", quiet=True)
    kept = {name.rpartition("/")[::2] for name in weights(out)}
    of = {name: {key for n, key in kept if n == name} for name, _ in kept}
    assert of["blocks.0.attention.qkv.weight"] == {"momentum"}
    assert of["head.weight"] == of["blocks.0.mlp.rise.bias"] == {"step", "exp_avg", "exp_avg_sq"}
    losses = [m["loss"] for m in metrics(out) if m["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert json.loads((out / "env.json").read_text())["precision"] == "fp32"


def test_state_goes_by_name_and_shape() -> None:
    settings = config.Train(optimizer="muon")
    model, other = Block(), Block()
    other.fall = nn.Linear(64, 20)  # has grown
    one, two = (build_optimizer(m, settings, CPU) for m in (model, other))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    one.step()
    state = optimizer_state(one, model)
    restore_optimizer(two, other, state)
    kept = optimizer_state(two, other)
    assert state.keys() - kept.keys() == {"fall.weight", "fall.bias"}
    momentum = kept["qkv.weight"]["momentum"]
    assert torch.equal(momentum, state["qkv.weight"]["momentum"])
    two.state.clear()
    assert not optimizer_state(two, other)


def test_a_stage_of_another_size_goes_on_with_its_momentum(small: config.Run) -> None:
    small.stages["masked"].size = (8,)
    first, second = stages.prepare_stages(small, lambda _: None)
    state = TrainState(first.spec, small.train, distributed.start("cpu"))
    for p in state.backbone.parameters():
        p.grad = torch.randn_like(p)
    state.optimizer.step()
    entered, _ = handover.enter(second, small, state, Progress())
    assert entered is not state
    before, after = state.optimizer_state(), entered.optimizer_state()
    for name in backbones.hidden_matrices(state.backbone):
        assert torch.equal(before[name]["momentum"], after[name]["momentum"])
