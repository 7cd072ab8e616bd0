"""What a recipe is said to cost."""

import pytest

from underpaint import backbones, config
from underpaint.core import masks
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError
from underpaint.training import cost


def recipe(**stages: dict[str, object]) -> config.Run:
    return config.from_dict(
        config.Run,
        {
            "network": {"width": 48, "depth": 3, "heads": 2},
            "stages": stages,
            "train": {"device": "cpu"},
        },
        "test: ",
    )


def network(run: config.Run, grid: tuple[int, int], classes: int = 0) -> backbones.Backbone:
    return backbones.build(run.network, grid=grid, patch_dim=48, classes=classes)


def test_published_costs_of_maskdm_b() -> None:
    """FACTS: 4449, 1722 and 269 GFLOP an image at 0, 50 and 90 % masks."""
    stages = cost.describe(config.preset("maskdm-celebahq256"), (256, 256), 3)["stages"]
    assert [round(s["flops_per_image"] / 1e9) for s in stages] == [269, 1722, 4449]
    assert [s["rate"] for s in stages] == [1 - 416 / 4096, 0.5, 0]


def test_numbers_are_those_of_the_network() -> None:
    run = recipe(
        masked={"images": 100, "batch": 8, "mask": "patch", "rate": 0.75},
        whole={"minutes": 2, "batch": 4},
    )
    found = cost.describe(run, (32, 32), 3, classes=5)
    real = network(run, (8, 8), classes=5)
    assert found["parameters"] == sum(p.numel() for p in real.parameters())
    masked, whole = found["stages"]
    assert (masked["visible"], masked["patches"]) == (16, 64)
    assert masked["flops_per_image"] == 3 * real.flops(16)
    assert masked["times_cheaper"] == real.flops(64) / real.flops(16)
    assert masked["images"] == 96  # a multiple of the batch
    assert masked["flops"] == 96 * 3 * real.flops(16)
    assert (whole["images"], whole["minutes"], whole["flops"]) == (None, 2, None)
    assert found["flops"] is None
    assert masked["memory"] == 20 * found["parameters"] + 8 * real.activation_bytes(16)
    assert found["memory"] == max(masked["memory"], whole["memory"])


def test_memory_is_that_of_a_microbatch() -> None:
    run = recipe(whole={"images": 64, "batch": 32})
    whole = cost.describe(run, (32, 32), 3)["memory"]
    run.train.microbatch = 8
    micro = cost.describe(run, (32, 32), 3)["memory"]
    assert whole - micro == 24 * network(run, (8, 8)).activation_bytes(64)


def test_memory_is_less_in_bf16_but_not_of_a_private_stage() -> None:
    run = recipe(
        whole={"images": 64, "batch": 32},
        private={"images": 64, "batch": 32, "dp": {"epsilon": 8}},
    )
    run.train.precision = "fp32"
    exact = [stage["memory"] for stage in cost.describe(run, (32, 32), 3)["stages"]]
    run.train.precision = "bf16"
    half = [stage["memory"] for stage in cost.describe(run, (32, 32), 3)["stages"]]
    assert half[0] < 0.9 * exact[0]
    assert half[1] == exact[1]


def test_a_falling_rate_costs_its_mean() -> None:
    run = recipe(
        tuning={
            "images": 6400,
            "mask": "patch",
            "rate": 0.75,
            "rate_end": 0.0,
            "rate_schedule": "linear",
        }
    )
    (stage,) = cost.describe(run, (32, 32), 3)["stages"]
    real = network(run, (8, 8))
    spec = MaskSpec("patch", 0.75)
    levels = masks.rate_levels(spec, (8, 8), 0.0, "linear")
    counts = [masks.visible_count(spec.at(rate), (8, 8)) for _, rate in levels]
    assert [level["visible"] for level in stage["levels"]] == counts
    assert sum(level["share"] for level in stage["levels"]) == 1
    expected = sum(3 * real.flops(V) for V in counts) / len(counts)  # eight equal parts
    assert stage["flops_per_image"] == pytest.approx(expected)
    assert stage["memory"] == 20 * sum(p.numel() for p in real.parameters()) + (
        32 * real.activation_bytes(64)
    )


def test_a_stage_of_another_size_has_another_grid() -> None:
    run = recipe(small={"images": 64, "size": 16}, whole={"images": 64})
    small, whole = cost.describe(run, (32, 32), 3)["stages"]
    assert (small["patches"], whole["patches"]) == (16, 64)


def test_labels_count_only_where_they_are_learnt() -> None:
    run = recipe(whole={"images": 64})
    with_labels = cost.describe(run, (32, 32), 3, classes=5)["parameters"]
    run.network.labels = False
    assert cost.describe(run, (32, 32), 3, classes=5)["parameters"] < with_labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {}}, "has no stages"),
        ({"noise": {"prediction": "v"}}, "v"),
        ({"network": {"kind": "uvitt"}}, "did you mean 'uvit'"),
        (
            {"stages": {"a": {"images": 64, "mask": "block", "block": 9, "rate": 0.5}}},
            "stages.a: a",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    values = {"stages": {"whole": {"images": 64}}, **changes}
    with pytest.raises(UserError, match=message):
        cost.describe(config.from_dict(config.Run, values, "test: "), (32, 32), 3)
