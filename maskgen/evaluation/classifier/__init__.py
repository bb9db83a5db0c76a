"""A small classifier that is trained on the images at hand in seconds and measures generated images offline.

Its distances describe how two sets of small images differ for this one network. They are reported with the name and
the weights of the classifier, and cannot be compared with distances of another network.
"""

from maskgen.evaluation.classifier.measures import (
    class_agreement,
    classifier_extractor,
    classifier_frechet,
    nearest_neighbour_distance,
    real_vs_real,
)
from maskgen.evaluation.classifier.model import SmallClassifier, load_classifier, save_classifier
from maskgen.evaluation.classifier.training import split, train_classifier

__all__ = [
    "SmallClassifier",
    "class_agreement",
    "classifier_extractor",
    "classifier_frechet",
    "load_classifier",
    "nearest_neighbour_distance",
    "real_vs_real",
    "save_classifier",
    "split",
    "train_classifier",
]
