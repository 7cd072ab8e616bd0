"""The overfit check against denoisers whose errors are known in closed form."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from underpaint.core import schedules, spaces
from underpaint.core.masks import MaskSpec, gather
from underpaint.evaluation.validation import OverfitCheck, log_snr_edges
from underpaint.training.training_set import Array

FLOW = schedules.build("flow", time="mixed")
SPACE = spaces.Pixels((16, 16), 1, 4)
TRAIN = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 1), dtype=np.uint8)
HELD_OUT = np.random.default_rng(1).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
SIGMAS = [math.exp(-(-6 + 1.5 * i + 0.75) / 2) for i in range(8)]  # the middles of the bins


class Double(nn.Module):
    """A denoiser that is a function of (x, sigma [B, 1, 1], labels), on the visible patches."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.stride = self.unit = 1
        self.calls = []

    def denoise(self, x, sigma, labels=None, mask=None):
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.calls.append((x, sigma, labels, mask))
        return self.function(x, sigma[:, None, None], labels)


def zeros():
    return Double(lambda x, sigma, labels: torch.zeros_like(x))


def identity():
    return Double(lambda x, sigma, labels: x)


def array(images):
    return Array(images, SPACE)


def check(**options):
    return OverfitCheck(array(TRAIN), array(HELD_OUT), SPACE, FLOW, 3, **options)


def test_the_error_of_zeros_is_the_mean_square_of_the_images():
    record = check().measure(zeros())
    images = (HELD_OUT / 127.5 - 1) ** 2
    own = images.mean((1, 2, 3))
    assert record["held_out"] == pytest.approx([own.mean()] * 8, rel=1e-5)
    assert record["train"] == pytest.approx([((TRAIN / 127.5 - 1) ** 2).mean()] * 8, rel=1e-5)
    assert record["held_out_images"] == pytest.approx(own, rel=1e-5)
    assert record["held_out_mean"] == pytest.approx(own.mean(), rel=1e-5)
    assert record["held_out_se"] == pytest.approx(own.std(ddof=1) / math.sqrt(40), rel=1e-4)
    assert record["gap"] == pytest.approx(record["held_out_mean"] - record["train_mean"])
    assert record["mask"] == "whole"


def test_the_bins_are_measured_at_their_middles():
    # leaving the noise in costs sigma² a number; 40·256 numbers a bin: 5 standard errors are 7 %
    record = check().measure(identity())
    assert record["log_snr_edges"] == [-6 + 1.5 * i for i in range(9)]
    assert record["held_out"] == pytest.approx([s * s for s in SIGMAS], rel=0.07)


def test_gaussian_images_reach_the_closed_form():
    s = 0.3
    pixels = np.random.default_rng(2).normal(0, s, (128, 16, 16, 1))
    images = np.clip(np.round((pixels + 1) * 127.5), 0, 255).astype(np.uint8)
    posterior = Double(lambda x, sigma, labels: x * s**2 / (s**2 + sigma**2))
    record = OverfitCheck(array(images), None, SPACE, FLOW, 0).measure(posterior)
    expected = [s**2 * v**2 / (s**2 + v**2) for v in SIGMAS]
    assert record["train"] == pytest.approx(expected, rel=0.05)


def test_a_memoriser_has_a_gap_and_a_fair_denoiser_has_none():
    known = SPACE.encode(spaces.from_uint8(TRAIN))

    def by_heart(x, sigma, labels):
        scores = -(torch.cdist(x.flatten(1), known.flatten(1)) ** 2) / (2 * sigma[:, 0] ** 2)
        return torch.einsum("bn,nvp->bvp", scores.softmax(1), known)

    memoriser = check().measure(Double(by_heart))
    fair = check().measure(Double(lambda x, sigma, labels: x / (1 + 3 * sigma**2)))
    assert memoriser["gap"] > 0.2
    assert memoriser["train"][-1] < 1e-6 < memoriser["held_out"][-1]
    assert abs(fair["gap"]) < 0.02


def test_at_a_mask_only_visible_patches_count_and_the_noise_is_the_same():
    masks = MaskSpec("patch", 0.75)
    both = check().run(SimpleNamespace(denoiser=identity()), masks)
    whole, masked = both
    assert (masked["mask"], masked["rate"]) == ("stage", 0.75)
    assert masked["held_out"] == pytest.approx(whole["held_out"], rel=0.1)
    assert masked["held_out"] != whole["held_out"]

    seen, everything = identity(), identity()
    assert check().measure(seen, masks) == masked
    assert check().measure(everything) == whole
    assert seen.calls[0][0].shape == (64, 4, 16)
    assert everything.calls[0][0].shape == (64, 16, 16)
    for (x, _, _, mask), (all_of_x, *_) in zip(seen.calls, everything.calls, strict=True):
        torch.testing.assert_close(gather(all_of_x, mask.visible), x, rtol=0, atol=0)


def test_a_stage_without_mask_has_one_record():
    records = check().run(SimpleNamespace(denoiser=zeros()), MaskSpec())
    assert [record["mask"] for record in records] == ["whole"]


def test_labels_reach_the_denoiser_image_by_image():
    labels = np.arange(40) % 3 - 1
    double = Double(lambda x, sigma, labels: torch.zeros_like(x))
    OverfitCheck(
        array(TRAIN[:40]),
        array(HELD_OUT),
        SPACE,
        FLOW,
        0,
        train_labels=labels,
        held_out_labels=labels[::-1],
    ).measure(double)
    given = [call[2].tolist() for call in double.calls]
    assert given[0] == labels.tolist()
    assert given[-1] == labels[::-1].tolist()


def test_it_is_repeatable_and_leaves_no_trace():
    class Noisy(Double):  # a network with dropout, left in training mode by the loop
        def __init__(self):
            super().__init__(lambda x, sigma, labels: self.dropout(x))
            self.dropout = nn.Dropout(0.5)

    double, own, masks = Noisy().train(), check(), MaskSpec("block", 0.5)
    before = torch.get_rng_state()
    first = own.measure(double, masks)
    assert torch.equal(torch.get_rng_state(), before)
    assert double.training
    assert double.dropout.training
    torch.manual_seed(99)
    assert own.measure(double, masks) == first
    assert check().measure(double, masks) == first
    other = OverfitCheck(array(TRAIN), array(HELD_OUT), SPACE, FLOW, 4).measure(double, masks)
    assert other["held_out"] != first["held_out"]


def test_without_held_out_images_there_is_no_gap():
    for held_out in (None, array(HELD_OUT[:0])):
        record = OverfitCheck(array(TRAIN), held_out, SPACE, FLOW, 0).measure(zeros())
        assert record["train_mean"] > 0
        fields = ("held_out", "held_out_mean", "held_out_se", "gap", "held_out_images")
        assert all(record[field] is None for field in fields)


def test_a_run_takes_at_most_the_limit_and_keeps_to_the_split():
    images = np.repeat(np.arange(100, dtype=np.uint8), 16 * 16).reshape(100, 16, 16, 1)
    dataset = SimpleNamespace(
        train_ids=np.arange(10, 100),
        held_out_ids=np.arange(10),
        labels=np.arange(100),
        images=images,
        size=(16, 16),
        channels=1,
        examples=lambda ids: array(images[ids]),
    )
    model = SimpleNamespace(label_names=("a",), space=SPACE, denoiser=SimpleNamespace(process=FLOW))
    own = OverfitCheck.of(dataset, model, 0, limit=30)
    (train, labels), (held_out, _) = own.sides
    assert train.images.shape == (30, 16, 16, 1)
    assert train.images[:, 0, 0, 0].min() >= 10
    assert labels.tolist() == train.images[:, 0, 0, 0].tolist()
    assert held_out.images[:, 0, 0, 0].tolist() == list(range(10))
    assert labels.max() > 60  # not the first thirty, which may all have one label


@pytest.mark.parametrize(
    ("process", "time"),
    [
        ("vp-linear", "uniform"),
        ("vp-cosine", "uniform"),
        ("flow", "uniform"),
        ("edm", "log-normal"),
    ],
)
def test_every_process_reaches_all_bins(process, time):
    built = schedules.build(process, time=time)
    assert log_snr_edges(built) == [-6 + 1.5 * i for i in range(9)]


def test_a_process_with_fewer_levels_has_narrower_bins():
    edges = log_snr_edges(SimpleNamespace(sigma_min=0.1, sigma_max=10.0))
    assert edges[0] == pytest.approx(-2 * math.log(10))
    assert edges[-1] == pytest.approx(2 * math.log(10))
