"""Images and labels: open data, map its classes onto the model's labels and load it in batches.

Read in this order: ``spec`` (what the user asked for), ``sources`` (readers of each kind of data), ``labels`` (which
class is which output of the model), ``images`` (the opened data), ``loader`` (batches).
"""

from ofqctl.data.batch import Batch
from ofqctl.data.imagenet import label_names, names_of
from ofqctl.data.images import ImageData, UnusableImageError
from ofqctl.data.loader import ImageLoader, image_loader, make_transform, none_usable
from ofqctl.data.opening import open_data
from ofqctl.data.samples import Skipped
from ofqctl.data.spec import DataSpec, LabelSpace
from ofqctl.data.synthetic import coloured, synthetic_images, white_noise

__all__ = [
    "Batch",
    "DataSpec",
    "ImageData",
    "ImageLoader",
    "LabelSpace",
    "Skipped",
    "UnusableImageError",
    "coloured",
    "image_loader",
    "label_names",
    "make_transform",
    "names_of",
    "none_usable",
    "open_data",
    "synthetic_images",
    "white_noise",
]
