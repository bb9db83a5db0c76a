"""Published protocols that measure how well a classifier can use a network's features.

`probe` runs any protocol on a saved run. `linear`, `sweep`, `knn` and `lowshot` read the `Features` of a training set
and of a test set; `finetune` trains the network itself. Each evaluates the test set once and returns a `ProbeResult`,
which states every setting and, in its notes, what differs from the paper.

On small data, random features and raw pixels already score well, so a probe means little alone: compare it with the
same probe on `raw_pixels` and on an untrained network.
"""

from maskgen.evaluation.probes.features import Features, extract, load_features, raw_pixels
from maskgen.evaluation.probes.few_labels import few_labels, lowshot
from maskgen.evaluation.probes.finetuning import finetune
from maskgen.evaluation.probes.heads import linear, sweep
from maskgen.evaluation.probes.neighbours import knn
from maskgen.evaluation.probes.probing import PROTOCOLS, features_of, options_of, probe
from maskgen.evaluation.probes.result import ProbeResult

__all__ = [
    "PROTOCOLS",
    "Features",
    "ProbeResult",
    "extract",
    "features_of",
    "few_labels",
    "finetune",
    "knn",
    "linear",
    "load_features",
    "lowshot",
    "options_of",
    "probe",
    "raw_pixels",
    "sweep",
]
