"""What a run begins with, and what a stage takes over from the one before."""

from underpaint import config
from underpaint.model_folder import find, read_fitting_spec, read_weights
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.stages import PreparedStage
from underpaint.training.train_state import TrainState, prepare_state
from underpaint.training.warm_start import adapt


def begin(
    run: config.Run, stages: list[PreparedStage], start: str | None, world: World
) -> tuple[TrainState, list[str]]:
    """The state that a run begins with, from drawn weights or those of `start`, and notes."""
    state = prepare_state(stages[0].spec, run.train, world)
    if start is None:
        return state, []
    folder = find(start)
    adapted, notes = adapt(read_weights(folder), read_fitting_spec(folder), state.model, start)
    state.load({"model": adapted, "ema": adapted}, 0)
    return state, [f"weights from {start}", *notes]


def enter(
    stage: PreparedStage, run: config.Run, state: TrainState, progress: Progress
) -> tuple[TrainState, list[str]]:
    """The state for this stage: the same, or rebuilt where size or labels change; and notes."""
    notes: list[str] = []
    if state.spec != stage.spec:
        state.finish()
        entered = prepare_state(stage.spec, run.train, state.world)
        adapted = {}
        for name, weights in state.weights().items():
            before = "the stage before"
            adapted[name], notes = adapt(weights, state.spec, entered.model, before)
        entered.load(adapted, state.ema.steps)
        entered.load_optimizer(state.optimizer_state())
        state = entered
    if progress.stage_images == 0 and not stage.settings.keep_optimizer:
        state.optimizer.state.clear()
    return state, [f"stage {stage.name}: {note}" for note in notes]
