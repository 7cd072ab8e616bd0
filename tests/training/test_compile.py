"""`train.compile`: one graph for each shape of the visible part, wherever it lies in the image."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import systems
from tests.toy import toy  # noqa: F401
from tests.training.runs import assert_same_run
from underpaint import config
from underpaint.errors import UserError
from underpaint.training import train


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of each graph that is made of a network; nothing may stay outside."""
    torch._dynamo.reset()
    found: list[int] = []
    original = nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.append(len(graph.graph.nodes))
        return graph

    def compile(self: nn.Module, *, dynamic: bool) -> None:
        original(self, dynamic=dynamic, backend=backend, fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile)
    monkeypatch.setattr("underpaint.training.train_state.check_compiler", lambda _: None)
    return found


def compiled(recipe: config.Run, kind: str) -> config.Run:
    recipe.space = config.Space(patch=2)
    recipe.network = systems.network(kind)
    recipe.train.compile = True
    recipe.train.check_every = recipe.train.sample_every = -1
    recipe.stages["masked"].mask, recipe.stages["masked"].images = "crop", 40
    recipe.stages["whole"].images = 16
    return recipe


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("kind", systems.NETWORKS)
def test_crops_are_one_graph_wherever_they_lie(
    kind: str, recipe: config.Run, graphs: list[int], tmp_path: Path
) -> None:
    """Five steps on crops: one graph, and the same run as without."""
    run = compiled(recipe, kind)
    run.stages.pop("whole")
    out = train(run, tmp_path / "compiled", quiet=True)
    assert len(graphs) == 1
    run.train.compile = False
    assert_same_run(out, train(run, tmp_path / "plain", quiet=True))


@pytest.mark.usefixtures("toy")
def test_every_level_of_a_rate_is_compiled(
    recipe: config.Run, graphs: list[int], tmp_path: Path
) -> None:
    """Six levels a stage, and the whole image: more than eight, where torch gives up."""
    run = compiled(recipe, "toy")
    stage = run.stages["masked"]
    stage.mask, stage.rate, stage.rate_end, stage.rate_schedule = "patch", 0.9, 0.1, "linear"
    stage.images = 64
    again = dataclasses.replace(stage, rate=0.8, rate_end=0.3)
    run.stages = {"masked": stage, "again": again, "whole": run.stages["whole"]}
    train(run, tmp_path / "run", quiet=True)
    assert len(graphs) == 13


def test_without_a_compiler_a_run_does_not_begin(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: none was found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", broken)
    recipe.train.compile = True
    with pytest.raises(UserError) as found:
        train(recipe, tmp_path / "run", quiet=True)
    assert str(found.value) == (
        "train.compile: torch cannot compile for cpu here (InvalidCxxCompiler: none was found); "
        "set it to false"
    )
    assert not (tmp_path / "run").exists()
