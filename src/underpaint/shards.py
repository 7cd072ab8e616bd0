"""Tensors in pieces: a folder of safetensors files, in each the rows that one process had.

As `torch.distributed.checkpoint` writes them for Hugging Face's format: the header of each file
says in JSON where its rows begin. Processes of another number, or one alone, read them as well. No
pickle is read or written.
"""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from underpaint.errors import UserError


def staged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, of shared tensors (DTensor) this process's part."""
    blocking = StagingOptions(False, False, False, False)
    copied: Any = DefaultStager(blocking).stage(dict(tensors))
    return dict(copied)


def write(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup) -> list[Path]:
    """Write this process's part of `tensors` into `folder`; all processes of `group` take part.

    Returns its files, once all have written theirs. Raises, everywhere, what one of them met.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save_state(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
    return sorted(folder.glob(f"shard-{dist.get_rank(group) + 1:05d}-*"))


def load(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Fill `tensors`, shared among the processes of `group`; None: whole, by this process alone.

    Raises UserError for files that are damaged or lack some of it.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is ")  # as it is meant
            load_state(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except (Exception, CheckpointException) as error:  # many types for a damaged file
        raise _damaged(folder, error) from None


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole tensors, by the files' headers. Raises UserError."""
    return {name: tuple(found.size) for name, found in _described(folder).items()}


def read(folder: Path) -> dict[str, Tensor]:
    """The whole tensors, in one process. Raises UserError for files that are damaged."""
    tensors = {
        # what no file has stays no number, which whoever reads weights refuses
        name: torch.full(found.size, math.nan, dtype=found.properties.dtype)
        if found.properties.dtype.is_floating_point
        else torch.zeros(found.size, dtype=found.properties.dtype)
        for name, found in _described(folder).items()
    }
    load(tensors, folder)
    return tensors


def _described(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        for name, tensor in found.items():
            if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
                raise ValueError(f"'{name}' is said to have more or less than is there")
    except Exception as error:  # many types for a damaged file
        raise _damaged(folder, error) from None
    return dict(found)


def _damaged(folder: Path, error: BaseException) -> UserError:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return UserError(f"{folder}: is damaged ({re.sub(r'[ ]+', ' ', reason[0])[:200]})")
