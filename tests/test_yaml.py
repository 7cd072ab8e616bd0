"""YAML: names stay as they were written, nothing is dropped in silence, nothing takes minutes."""

import time
from pathlib import Path

import pytest

from underpaint import config
from underpaint.compare import study
from underpaint.config.plain import parse, typed
from underpaint.errors import UserError


def load(text: str, tmp_path: Path) -> config.Run:
    (tmp_path / "my.yaml").write_text(text)
    return config.load(tmp_path / "my.yaml")


@pytest.mark.parametrize(
    "text", ["2024_01", "007", "12:30", "1.10", "1e3", "0x1F", "no", "true", "2024-01-01", "~"]
)
def test_text_stays_as_it_is_written(text: str, tmp_path: Path) -> None:
    assert load(f"data: {{source: {text}}}", tmp_path).data.source == text
    assert load(f"data: {{source: '{text}'}}", tmp_path).data.source == text
    run = config.apply_flags(config.preset("default"), ["--data.source", text])
    assert run.data.source == text
    assert list(load(f"stages: {{{text}: {{batch: 3}}}}", tmp_path).stages) == [text]


def test_numbers_are_numbers_where_they_are_expected(tmp_path: Path) -> None:
    run = load(
        "train: {seed: 007, ema: 1e-1, compile: yes, weight_decay: .5}\n"
        "data: {size: [32, 48], limit: 1_000}\nnetwork: {options: {a: [1, 2.5, x, true, null]}}\n"
        "stages: {a: {images: 64, dp: null}}",
        tmp_path,
    )
    assert (run.train.seed, run.train.ema, run.train.compile) == (7, 0.1, True)
    assert (run.data.size, run.data.limit, run.train.weight_decay) == ((32, 48), 1000, 0.5)
    assert run.network.options == {"a": [1, 2.5, "x", True, None]}
    assert run.stages["a"].dp is None
    assert load(config.to_yaml(run), tmp_path) == run
    assert typed(parse("[12:30, 007, 2024_01, -3, .inf]", "")) == [
        "12:30", "007", "2024_01", -3, float("inf"),
    ]  # fmt: skip


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {seed: 7}\ndata: {}\ntrain: {ema: 0.9}",
            "'train' is given twice, at lines 1 and 3",
        ),
        ("train:\n  seed: 7\n  seed: 8", "'seed' is given twice, at lines 2 and 3"),
        ("stages:\n  masked:\n  whole: {batch: 3}", "stages.masked is empty"),
        ("train:", "expected settings as 'name: value'"),
        ("data: {source: }", "data.source: expected a text"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "is nested too deeply"),
        ("[" * 200_000, "is nested too deeply|is not valid YAML"),
        ("{a: " * 200_000, "is nested too deeply|is not valid YAML"),
        ("# " + "x" * (1 << 20), "is larger than 1 MiB"),
        ("train: {seed: !!python/object/apply:os.system [true]}", "train.seed: expected a whole"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=message):
        load(text, tmp_path)
    with pytest.raises(UserError):
        study.load(tmp_path / "my.yaml")
    assert time.process_time() - began < 30  # a fuse: it took a minute and more


def test_anchors_serve_where_they_are_few(tmp_path: Path) -> None:
    text = "stages:\n  a: &a {batch: 3, images: 6}\n  b: {<<: *a, batch: 4}\n  c: *a"
    stages = load(text, tmp_path).stages
    assert [(stage.batch, stage.images) for stage in stages.values()] == [(3, 6), (4, 6), (3, 6)]
