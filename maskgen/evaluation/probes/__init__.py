"""What a backbone's features are worth to a classifier, by published protocols.

All but `finetune` read `Features` (see `maskgen.evaluation.probes.features`) of a training and a
test set, and test once.
Each gives a `ProbeResult` that states every number it used, and in its notes what differs from the paper.

A falling loss or a good k-NN proves little on small data: report a probe minus the best of `controls`.
"""

from maskgen.evaluation.probes.compare import controls, gain
from maskgen.evaluation.probes.few_labels import lowshot
from maskgen.evaluation.probes.finetuning import finetune
from maskgen.evaluation.probes.heads import linear, sweep
from maskgen.evaluation.probes.neighbours import knn
from maskgen.evaluation.probes.result import ProbeResult

PROTOCOLS = {"linear": linear, "sweep": sweep, "knn": knn, "lowshot": lowshot, "finetune": finetune}

__all__ = ["PROTOCOLS", "ProbeResult", "controls", "finetune", "gain", "knn", "linear", "lowshot", "sweep"]
