"""Samples with their dataset indices, from whatever the user has, and the batches of an epoch.

    sources.py        Samples: any sized indexable source, and the classes if they are known
    image_folder.py   a folder of images          images.py   one image: decoded, upright, 8 bits, on white
    arrays.py         arrays, .npy and .npz       hub.py      a Hugging Face data set
    loading.py        order of an epoch, a batch  workers.py  batches loaded ahead: ahead.py in a thread, pool.py in
                                                              processes
    fingerprint.py    which samples, in which order

A sample is addressed by its place in the source, always: that number is its row in the bank, before any shuffling.
"""

from la_core.data.arrays import MappedArray
from la_core.data.fingerprint import fingerprint
from la_core.data.hub import from_hub
from la_core.data.image_folder import ImageFolder
from la_core.data.images import MAX_PIXELS
from la_core.data.loading import batches, load
from la_core.data.sources import Samples, Source, load_npz, samples
from la_core.data.workers import Workers

__all__ = [
    "MAX_PIXELS",
    "ImageFolder",
    "MappedArray",
    "Samples",
    "Source",
    "Workers",
    "batches",
    "fingerprint",
    "from_hub",
    "load",
    "load_npz",
    "samples",
]
