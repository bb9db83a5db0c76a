"""How well a tokenizer reconstructs images, and how much of its codebook it uses.

`measures` has the metrics as functions; `report` joins them into what `maskgen reconstruct` writes.
"""

from maskgen.evaluation.reconstruction.measures import codebook_use, measure, psnr, ssim
from maskgen.evaluation.reconstruction.report import ReconstructionReport, reconstruct

__all__ = ["ReconstructionReport", "codebook_use", "measure", "psnr", "reconstruct", "ssim"]
