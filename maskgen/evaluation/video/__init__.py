"""How close predicted videos are to the true ones: metrics of frames, and Fréchet distances between sets of clips.

`measures` has the metrics of frames and the trivial predictors, `fvd` the features of clips, and `report` joins them
into what `maskgen evaluate-video` writes.
"""

from maskgen.evaluation.video.fvd import ClassifierFeatures, PixelFeatures, ScriptedFeatures, clip_distance
from maskgen.evaluation.video.measures import METRICS, TRIVIAL, best_of
from maskgen.evaluation.video.report import VideoReport, evaluate_videos

__all__ = [
    "METRICS",
    "TRIVIAL",
    "ClassifierFeatures",
    "PixelFeatures",
    "ScriptedFeatures",
    "VideoReport",
    "best_of",
    "clip_distance",
    "evaluate_videos",
]
