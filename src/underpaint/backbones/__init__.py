"""Networks: one file each, all behind the contract of `base`. Importing one registers it."""

from underpaint.backbones.base import Backbone as Backbone
from underpaint.backbones.base import Prediction as Prediction
from underpaint.backbones.base import build as build
from underpaint.backbones.base import check_features as check_features
from underpaint.backbones.base import check_hidden as check_hidden
from underpaint.backbones.base import hidden_matrices as hidden_matrices
from underpaint.backbones.base import interpolate_positions as interpolate_positions
from underpaint.backbones.base import is_augment_embedding as is_augment_embedding
from underpaint.backbones.base import is_label_table as is_label_table
from underpaint.backbones.base import kinds as kinds
from underpaint.backbones.base import position_ids as position_ids
from underpaint.backbones.base import reads_patches as reads_patches
from underpaint.backbones.base import register as register
from underpaint.backbones.base import resample_patches as resample_patches
from underpaint.backbones.dit import DiT as DiT
from underpaint.backbones.hourglass import Hourglass as Hourglass
from underpaint.backbones.maskdit import MaskDiT as MaskDiT
from underpaint.backbones.unet import UNet as UNet
from underpaint.backbones.uvit import UViT as UViT
