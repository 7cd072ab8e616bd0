"""Editing images with a trained model: repaint a part, widen, vary, go from one to another.

    inpaint      what is erased is drawn anew, given what is kept     RePaint, arXiv 2201.09865
    outpaint     what lies beyond the edges                           the same, window by window
    restore      what sealed data do not hold                         the same
    vary         the image noised to a level, and drawn from there  SDEdit, arXiv 2108.01073
    interpolate  from one seed's noise to another's, along the sphere

Images are uint8 [n, H, W, C]. What is kept comes back as it was given, bit for bit, and nothing
of what is erased is read. Image i is drawn with its own seed, whatever the batch.
"""

from underpaint.editing.drawing import Drawing as Drawing
from underpaint.editing.repainting import RESAMPLE as RESAMPLE
from underpaint.editing.repainting import SOFT as SOFT
from underpaint.editing.repainting import inpaint as inpaint
from underpaint.editing.repainting import outpaint as outpaint
from underpaint.editing.repainting import restore as restore
from underpaint.editing.variation import interpolate as interpolate
from underpaint.editing.variation import slerp as slerp
from underpaint.editing.variation import vary as vary
