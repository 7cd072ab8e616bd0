"""The settings of a run: dataclasses are the schema, YAML and flags are two spellings of them.

`underpaint train --config my.yaml --stages.whole.batch 64` reads the file first, then the flags.
Unknown names, wrong types and impossible values raise `UserError` with one sentence that names the
place, what was given and what was expected.
"""

from underpaint.config.cross_checks import check as check
from underpaint.config.cross_checks import check_data as check_data
from underpaint.config.cross_checks import check_labels as check_labels
from underpaint.config.cross_checks import check_model as check_model
from underpaint.config.fields import setting as setting
from underpaint.config.model_spec import ModelSpec as ModelSpec
from underpaint.config.model_spec import Network as Network
from underpaint.config.model_spec import Noise as Noise
from underpaint.config.model_spec import Sampling as Sampling
from underpaint.config.model_spec import Space as Space
from underpaint.config.plain import read_yaml as read_yaml
from underpaint.config.reading import apply_flags as apply_flags
from underpaint.config.reading import checked as checked
from underpaint.config.reading import flag_names as flag_names
from underpaint.config.reading import flat as flat
from underpaint.config.reading import from_dict as from_dict
from underpaint.config.reading import load as load
from underpaint.config.reading import preset as preset
from underpaint.config.reading import preset_names as preset_names
from underpaint.config.reading import preset_text as preset_text
from underpaint.config.reading import presets as presets
from underpaint.config.reading import to_dict as to_dict
from underpaint.config.reading import to_yaml as to_yaml
from underpaint.config.schema import CHANNELS as CHANNELS
from underpaint.config.schema import DP as DP
from underpaint.config.schema import Channels as Channels
from underpaint.config.schema import Data as Data
from underpaint.config.schema import Run as Run
from underpaint.config.schema import Stage as Stage
from underpaint.config.schema import Train as Train
from underpaint.config.schema import image_size as image_size
from underpaint.config.schema import named as named
from underpaint.config.schema import network_of as network_of
