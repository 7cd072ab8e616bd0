"""The report: a page of its own that tells what the run's files say, whatever is missing."""

import dataclasses
import functools
import json
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from tests.report.synthetic import model, write_images, write_run
from underpaint import config, report, serving
from underpaint.backbones import base
from underpaint.cli import report as cli_report
from underpaint.core import masks, preconditioning, schedules, spaces
from underpaint.data import prepare
from underpaint.errors import UserError
from underpaint.evaluation import records as metrics
from underpaint.report import charts, gallery, summary
from underpaint.report.html import sentences
from underpaint.report.plots import Band, Line, chart, smooth
from underpaint.training import identities
from underpaint.training.checkpointing import RunFolder

SECTIONS = ["samples", "progress", "nearest", "stages", "curves", "repeat"]
LABELS = ("0", "1", "2", "3")
VOID = {"meta", "img", "br", "link", "input"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drawn() -> None:
    """Charts are drawn, which takes most of a page's time; elsewhere they are blank."""


@pytest.fixture(autouse=True)
def blank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(charts, "chart", lambda *_, **__: Markup('<svg role="img"></svg>'))


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_images(tmp_path / "images.npz"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Runs have weights; what they draw are copies of the first training images."""
    images = np.load(source)["images"]
    monkeypatch.setattr(gallery.models, "load", lambda _: model(LABELS, images))


class Page(HTMLParser):
    """Parses a page and fails where tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.ids, self.addresses, self.tags = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.source.count("<style>") == 1
        self.body = self.source.split("</style>")[1]
        self.text = re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", self.body))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.addresses += [
            value for name, value in attributes if name.rsplit(":")[-1] in ("src", "href")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.usefixtures("trained", "drawn")
def test_a_whole_run_has_every_section_and_needs_nothing_else(tmp_path, source):
    path = report.build(write_run(tmp_path / "run", source), title="My run")
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    assert set(SECTIONS) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)|\bon\w+=", page.source)
    assert "<h1>My run</h1>" in page.source
    assert [p.name for p in path.parent.glob(".*")] == []  # no draft stays behind
    for text in (
        "This model learned from 54 images",
        "6 more were held out",
        "1.08 million parameters",
        "64 patches of 4×4 pixels",
        "underpaint train --config",
        "learning_rate: 0.001",  # the recipe
        "torch 2.13.0",  # the environment
        "Error by noise level",
        "The same at the stage&#39;s mask",
    ):
        assert text in page.text


def test_what_the_masks_saved(tmp_path, source):
    # 32,000 images at a quarter of 400 MFLOP, then 32,000 whole ones
    run_dir = write_run(tmp_path / "run", source)
    page = Page(report.build(run_dir))
    records = metrics.read(run_dir / "metrics.jsonl")
    ends = [r for r in records if r["kind"] == "stage" and r["event"] == "end"]
    masked, whole = ends[0]["seconds"], ends[1]["seconds"] - ends[0]["seconds"]
    saved = summary.clock(whole - masked)
    assert "Hiding patches saved 9.6 TFLOP, 37.5\xa0% of what" in page.text
    assert f"would have taken {saved} longer" in page.text
    row = re.search(r"<th>masked</th>(.*?)</tr>", page.source, re.DOTALL)[1]
    assert re.findall(r"<td>(.*?)</td>", row) == [
        "32,000",
        "75\xa0%",
        "16 of 64",
        "100 MFLOP",
        f"{32_000 / masked:,.0f}",
        summary.clock(masked),
        "9.6 TFLOP",
        saved,
    ]


@pytest.mark.usefixtures("trained")
def test_copies_are_shown_beside_what_they_were_copied_from(tmp_path, source):
    run_dir = write_run(tmp_path / "run", source)
    drawn = gallery.draw(run_dir, report.page._read(run_dir)[0], "whole")
    assert len(drawn.pairs) == 16
    copies = [(sample, image) for sample, image, distance in drawn.pairs if distance == 0]
    assert len(copies) >= 10  # all but those that happen to be held out
    assert all(np.array_equal(sample, image) for sample, image in copies)
    # independent uniform noise: differences of variance 2·(256² − 1)/12, the nearest a bit closer
    assert 80 < drawn.usual < np.sqrt(2 * (256**2 - 1) / 12)
    assert [drawn.columns, len(drawn.real), drawn.captions] == [8, 32, LABELS + LABELS]


@pytest.mark.usefixtures("trained")
def test_real_images_stand_in_the_columns_of_their_labels(tmp_path, source):
    run_dir = write_run(tmp_path / "run", source)
    drawn = gallery.draw(run_dir, report.page._read(run_dir)[0], "whole")
    with np.load(source) as arrays:
        label = {i.tobytes(): n for i, n in zip(arrays["images"], arrays["labels"], strict=True)}
    for place, image in enumerate(drawn.real):
        assert label[image.tobytes()] == place % 4


def test_an_interrupted_run_with_half_a_line(tmp_path, source):
    run_dir = write_run(tmp_path / "run", source, finished=False)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "stage": "whole", "ima')
    page = Page(report.build(run_dir))
    assert "has not reached the end of its recipe" in page.text
    assert "12,800 images in" in page.text
    assert "not finished" in page.text
    assert "No final samples could be drawn" in page.text


def test_damage_elsewhere_is_an_error(tmp_path, source):
    run_dir = write_run(tmp_path / "run", source)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[4] = lines[4][:20] + "\n"
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 5 is damaged"):
        report.build(run_dir)


@pytest.mark.usefixtures("trained")
def test_without_held_out_images(tmp_path, source):
    page = Page(report.build(write_run(tmp_path / "run", source, held_out=False)))
    assert set(SECTIONS) <= set(page.ids)
    assert "learned from 60 images" in page.text
    assert "more were held out" not in page.text
    assert "memorizing cannot be seen here" in page.text
    assert "There are no held-out images to say what distance is usual" in page.text


@pytest.mark.usefixtures("trained")
def test_without_checks(tmp_path, source):
    page = Page(report.build(write_run(tmp_path / "run", source, checks=False)))
    assert set(SECTIONS) <= set(page.ids)
    assert "No overfit checks are recorded" in page.text
    assert "Error by noise level" not in page.text


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("stage", ["masked", "whole"])
def test_with_a_single_stage_no_time_is_claimed(tmp_path, source, stage):
    page = Page(report.build(write_run(tmp_path / "run", source, stages=(stage,))))
    assert "in one stage" in page.text
    assert "time saved" not in page.text
    assert "have taken" not in page.text
    assert ("Hiding patches saved" in page.text) == (stage == "masked")
    assert ("No stage hid patches" in page.text) == (stage == "whole")


def test_before_the_first_step(tmp_path, source):
    run_dir = write_run(tmp_path / "run", source)
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "env.json").unlink()
    page = Page(report.build(run_dir))
    assert "No training is recorded yet" in page.text
    assert "No stage has begun" in page.text


@pytest.mark.usefixtures("drawn")
def test_names_are_text_and_never_markup(tmp_path, source, monkeypatch):
    evil = "<script>alert(1)</script>"
    images = np.load(source)["images"]
    monkeypatch.setattr(gallery.models, "load", lambda _: model((evil, "$x$"), images))
    run_dir = write_run(tmp_path / "run", source, labels=(evil, "$x$"), stages=("a&b<i>",))
    page = Page(report.build(run_dir, title=evil, also=[(evil, run_dir), ("$\\frac$", run_dir)]))
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.source


@pytest.mark.usefixtures("trained")
def test_when_the_images_are_gone(tmp_path, source):
    run_dir = write_run(tmp_path / "run", source)
    Path(source).unlink()
    page = Page(report.build(run_dir))
    assert "The images of this run were not found" in page.text
    assert "Real images" not in page.text.replace("Samples and real images", "")
    assert "nearest" not in page.ids
    assert "Samples" in page.text
    assert {"samples", "progress", "stages", "curves", "repeat"} <= set(page.ids)


@pytest.mark.usefixtures("trained")
def test_images_that_have_moved_are_found(tmp_path, source):
    """Those that were held out are held out still, whatever the recipe says now."""
    run_dir = write_run(tmp_path / "run", source)
    images = prepare(config.Data(source=source, held_out="20"))
    sums = [images.file_digests[ids] for ids in (images.train_ids, images.held_out_ids)]
    identities.write(RunFolder(run_dir), identities.Images(*sums))
    moved = str(Path(source).rename(tmp_path / "moved.npz"))
    page = Page(report.build(run_dir, data=moved))
    assert "nearest" in page.ids
    assert "learned from 40 images" in page.text
    with pytest.raises(UserError, match="--data nowhere: there are no images"):
        report.build(run_dir, data="nowhere")


@pytest.mark.usefixtures("drawn")
def test_several_runs_side_by_side(tmp_path, source):
    main = write_run(tmp_path / "run", source)
    transfer = write_run(
        main / "transfer", source, stages=("whole",), start=str(main), settings={"limit": 40}
    )
    scratch = write_run(main / "scratch", source, stages=("whole",), level=1.8)
    page = Page(report.build(main, also=[("on from it", transfer), ("from scratch", scratch)]))
    assert "comparison" in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert "began with the weights of the run above" in page.text
    assert "began from random weights" in page.text
    assert "40 images" in page.text
    curves = page.body.split("Error on held-out images", 1)[1].split("</figure>")[0]
    assert "on from it" in curves
    assert "from scratch" in curves
    alone = Page(report.build(transfer, title="Transfer", also=[("from scratch", scratch)]))
    assert alone.source.count("<figure>\n<h3>") >= 2  # a single one beside the run itself
    assert "finetune --from" in alone.text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.build(tmp_path)


# --- its parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "a DiT that sees an image as 64 patches of 4×4 pixels."),
        ({"network": {"kind": "uvit"}}, "a U-ViT that sees"),
        ({"network": {"kind": "maskdit"}}, "a MaskDiT (an encoder of visible patches, then a"),
        ({"network": {"kind": "unet"}}, "a U-Net that sees"),
        ({"network": {"kind": "hourglass"}}, "a transformer in the shape of an hourglass (local"),
        (
            {"space": {"kind": "wavelets", "patch": 2, "levels": 2}},
            "64 patches of 2×2 Haar wavelet coefficients, each of which covers 4×4 pixels.",
        ),
        (
            {"space": {"kind": "latents", "patch": 2, "vae": "/home/me/sd-vae"}},
            "2×2 latents of the autoencoder sd-vae, each of which covers 8×8 pixels.",
        ),
    ],
)
def test_what_the_network_sees(changes, words):
    run = config.from_dict(config.Run, changes, "test: ")
    assert words in sentences().about_network(run, None, 64)


def test_every_setting_has_words():
    """Of networks, masks, processes and predictions; none is left as the recipe spells it."""
    ours = {k for k, (cls, _) in base._KINDS.items() if cls.__module__.startswith("underpaint.")}
    assert sentences().NETWORKS.keys() == ours  # studies and tests register others
    assert sentences().MASKS.keys() == {*masks.KINDS} - {"none"}
    assert sentences().PROCESSES.keys() == schedules.TIME_LAWS.keys()
    assert sentences().PREDICTIONS.keys() == preconditioning.SCHEDULES.keys()
    assert {*spaces.KINDS} == {"pixels", "wavelets", "latents"}  # see test_what_the_network_sees


def test_what_is_learnt():
    score = config.Noise(process="ve", prediction="score")
    assert sentences().about_noise(score) == (
        "Noise is added to the image, in levels evenly spaced in its logarithm (VE), and the "
        "network predicts the score, the direction in which images become likelier."
    )
    text = sentences().about_noise(config.Noise(hidden_weight=0.1))
    assert f"predicts, at {summary.percent(0.1)} of their weight, the noisy hidden" in text


def test_masks_that_save_nothing(tmp_path, source):
    run = write_run(tmp_path / "run", source)
    records = metrics.read(run / "metrics.jsonl")
    facts = summary.stages(records, config.load(run / "config.yaml"))
    dear = [dataclasses.replace(s, flops=s.whole_flops, mask="salient") for s in facts]
    assert "saved nothing: this network computes on hidden patches" in sentences().about_masks(dear)
    assert "patches at random, those of little contrast more often" in sentences().about_stage(
        dear[0]
    )


def test_reading_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.read(path) == []
    counts = dict.fromkeys(("images", "stage_images", "flops", "lr", "rate", "visible"), 1)
    private = json.dumps({"kind": "step", "stage": "whole", **counts, "epsilon": 1})
    whole = json.dumps({"kind": "step", "stage": "whole", **counts, "loss": 1, "seconds": 1})
    path.write_text(f"{private}\n")  # which tells neither its loss nor its time
    assert len(metrics.read(path)) == 1
    path.write_text(f"{whole}\n{whole}\n")
    assert len(metrics.read(path)) == 2
    for cut in range(1, len(whole)):
        path.write_text(f"{whole}\n{whole[:cut]}")
        assert len(metrics.read(path)) == 1
    path.write_text(f"{whole}\n{whole[:9]}\n")  # with its end of line, it was not cut but damaged
    with pytest.raises(UserError, match="line 2"):
        metrics.read(path)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (12_060, "3 h 21 min"),
    ],
)
def test_clock(number, text):
    assert summary.clock(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 FLOP"), (4e8, "400 MFLOP"), (9.6e12, "9.6 TFLOP"), (9.9999e14, "1 PFLOP")],
)
def test_flops(number, text):
    assert summary.flops(number) == text


def test_seconds_between_steps_are_interpolated():
    records = [{"kind": "step", "images": i, "seconds": s} for i, s in ((100, 10.0), (200, 30.0))]
    assert summary.seconds_at(records, [50, 100, 150]) == [5.0, 10.0, 20.0]
    assert summary.seconds_at([], [50]) == [0.0]


def test_smoothing_keeps_means_and_lines():
    line = [float(i) for i in range(100)]
    assert smooth(line)[10:90] == pytest.approx(line[10:90])
    assert smooth([2.0] * 7) == pytest.approx([2.0] * 7)
    assert smooth([]) == []


def test_a_chart_takes_its_colours_from_the_page():
    lines = [Line("a", [0, 1], [1, 2]), Line("b < $c$", [0, 1], [2, 1], 1, faint=[1, 1])]
    bands = [Band("first stage", "first", 0, 0.5, True), Band("second", "second", 0.5, 1)]
    drawing = chart(
        "one", lines, x_label="x", y_label="y", describe='a "curve"', bands=bands, wide=True
    )
    assert drawing.count("<svg") == 2  # one for a phone
    for variable in (
        "currentColor",
        "var(--rule)",
        "var(--band)",
        "var(--line-1)",
        "var(--line-2)",
    ):
        assert variable in drawing
    assert not re.search(r"#0\d0\d0\d", drawing)
    assert "b &lt; $c$" in drawing
    ids = re.findall(r' id="([^"]+)"', drawing)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:url\(#|href="#)([^)"]+)', drawing):
        assert used in ids


def test_the_page_says_whether_to_go_on(tmp_path: Path, source: str, trained: None) -> None:
    page = Page(report.build(write_run(tmp_path / "run", source)))
    assert "Check: held-out error 0.0631 (+0.7 %), worse than at 56,000 images" in page.text
    assert "mproving" not in page.text
    blind = Page(report.build(write_run(tmp_path / "blind", source, held_out=False)))
    assert 'id="stopping"' not in blind.source


def test_the_page_draws_what_was_drawn_and_where_a_stage_ended(tmp_path: Path, source: str) -> None:
    run = write_run(tmp_path / "run", source)
    lines = [
        {"kind": "scores", "stage": "whole", "images": images, "samples": 64, "copies": share}
        | {"protocol": "FD-MobileNetV2 of 64 images per side"}
        | {"frechet_train": 30.0 - images / 1e4, "frechet_held_out": 31.0}
        for images, share in ((40_000, 0.0), (64_000, 0.25))
    ]
    sentence = "stage whole: ends after 32,000 of 64,000 images"
    lines.append({"kind": "stop", "stage": "whole", "images": 64_000, "sentence": sentence})
    lines[-1] |= {"gain": False, "back": 56_000, "cooldown": 0, "ends": True}
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    page = Page(report.build(run))
    for text in (
        "Samples against real images",
        "FD-MobileNetV2 of 64 images per side: lower is better",
        "Near copies",
        "Of 64 samples at each check",
        f"After 64,000 images, {sentence}.",
    ):
        assert text in page.text
    assert (
        "Samples against real images"
        not in Page(report.build(write_run(tmp_path / "plain", source))).text
    )


@pytest.mark.usefixtures("trained")
def test_training_images_are_left_out_if_asked(tmp_path: Path, source: str) -> None:
    run = write_run(tmp_path / "run", source)
    whole = report.build(run).read_text()
    assert "This page contains training images" in whole
    assert f"underpaint report {run} --no-training-images" in whole
    assert 'alt="nearest training image"' in whole
    without = report.build(run, training_images=False).read_text()
    assert "This page contains training images" not in without
    assert 'alt="nearest training image"' not in without
    assert 'alt="real image' not in without
    assert 'alt="sample' in without


def test_the_length_of_a_run_that_is_not_as_long_as_it_was_planned(
    tmp_path: Path, source: str
) -> None:
    run = write_run(tmp_path / "run", source)
    settings, path = config.load(run / "config.yaml"), run / "metrics.jsonl"
    settings.stages["whole-more1"] = dataclasses.replace(settings.last, images=16_000)
    lines = path.read_text().splitlines(keepends=True)
    decided = {"kind": "stop", "stage": "whole", "sentence": "faster", "images": 50_000, "back": 0}
    decided |= {"cooldown": 12_000, "begins": 18_000, "total": 62_000}
    path.write_text("".join([*lines[:-1], json.dumps(decided) + "\n"]))
    assert " of 62,000 images" in report.live(run, 10)
    ends = json.loads(lines[-1]) | {"images": 62_000}
    with path.open("a") as file:
        file.write(json.dumps(ends) + "\n")
    assert "62,000 of 62,000 images" in report.live(run, 10)
    (run / "config.yaml").write_text(config.to_yaml(settings))  # extended
    assert "62,000 of 78,000 images" in report.live(run, 10)


def test_a_run_is_followed_while_it_goes_on(tmp_path: Path, source: str) -> None:
    run = write_run(tmp_path / "run", source)
    found = report.live(run, 10)
    assert '<meta http-equiv="refresh" content="10">' in found
    assert "The run has ended: 64,000 of 64,000 images, 100\xa0%. Samples beside" in found
    assert f"<code>{run}/report.html</code>" in found
    assert f"train --resume --out {run} --minutes 10</code> <a" in found  # as it ended
    assert "Samples and real images" not in found  # nothing is drawn
    assert not (run / "report.html").exists()
    with serving.bound(functools.partial(cli_report.Live, run=run), 18400) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with urllib.request.urlopen(address) as answer:
            assert "How training went" in answer.read().decode()
        for name in ("config.yaml", "../run/env.json"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + name)
        server.shutdown()
