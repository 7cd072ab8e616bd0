"""The settings of a run: dataclasses are the schema, YAML and flags are two spellings of them.

`underpaint train --config my.yaml --stages.whole.batch 64` reads the file first, then the flags.
Unknown names, wrong types and impossible values raise `UserError` with one sentence that names the
place, what was given and what was expected.
"""

from underpaint.config.cross_checks import check, check_data, check_labels
from underpaint.config.reading import (
    apply_flags,
    flag_names,
    from_dict,
    load,
    preset,
    preset_names,
    preset_text,
    presets,
    to_dict,
    to_yaml,
)
from underpaint.config.schema import (
    DP,
    Data,
    ModelSpec,
    Network,
    Noise,
    Run,
    Sampling,
    Space,
    Stage,
    Train,
    image_size,
    network_of,
    setting,
)

__all__ = [
    "DP",
    "Data",
    "ModelSpec",
    "Network",
    "Noise",
    "Run",
    "Sampling",
    "Space",
    "Stage",
    "Train",
    "apply_flags",
    "check",
    "check_data",
    "check_labels",
    "flag_names",
    "from_dict",
    "image_size",
    "load",
    "network_of",
    "preset",
    "preset_names",
    "preset_text",
    "presets",
    "setting",
    "to_dict",
    "to_yaml",
]
