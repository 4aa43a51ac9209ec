"""What an encoder makes of samples, and how good that is.

    features.py    embed, layer_features      embeddings and named layers of every sample, on the host
    knn.py         knn, knn_grid              weighted nearest-neighbour classification (Wu et al. 2018)
    probe.py       linear_probe               a linear classifier on frozen features
    agreement.py   nmi, ari, purity           how far two labellings say the same
    density.py     densities                  how crowded it is around each sample, near and far
    gallery.py     gallery                    queries with their neighbours: sure successes, unsure failures
    mds.py         mds, landmark_mds          a map in the plane (Torgerson 1952; de Silva and Tenenbaum 2004)
    search.py      the blocked search that knn, densities and gallery share

``knn``, ``knn_grid``, ``densities`` and ``gallery`` take arrays of any library, in blocks within a budget of bytes, and
answer in kind; the others work on the host.
"""

from la_core.evaluate.agreement import ari, nmi, purity
from la_core.evaluate.density import Densities, densities
from la_core.evaluate.features import Embedded, embed, layer_features
from la_core.evaluate.gallery import Gallery, gallery
from la_core.evaluate.knn import KnnGrid, knn, knn_grid
from la_core.evaluate.mds import Map, landmark_mds, mds
from la_core.evaluate.probe import Probe, linear_probe

__all__ = [
    "Densities",
    "Embedded",
    "Gallery",
    "KnnGrid",
    "Map",
    "Probe",
    "ari",
    "densities",
    "embed",
    "gallery",
    "knn",
    "knn_grid",
    "landmark_mds",
    "layer_features",
    "linear_probe",
    "mds",
    "nmi",
    "purity",
]
