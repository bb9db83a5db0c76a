"""Measurements of trained models. Each one is saved together with everything that produced it.

- `fid`: FID, Inception score, KID, precision and recall of generated images
- `reconstruction`: reconstructions of a tokenizer and use of its codebook
- `video`: predicted videos against the true ones, frame by frame, and FVD
- `probes`: what the features of a network are worth to a classifier
- `classifier`: a small classifier that stands in for Inception without a download
- `visualise`: images of what a masked model sees and predicts (`hog_glyphs` paints its HOG targets)
- `command`: what `maskgen evaluate` runs
"""
