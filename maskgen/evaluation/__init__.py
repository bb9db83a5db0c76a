"""How good the pictures are: Fréchet distances (FID and others), class agreement, distance to the nearest real picture.

`statistics` holds the mathematics, `sources` reads what is compared, `inception` loads the feature extractor, `fid`
joins the three; `classifier` is the small stand-in that needs no download. `reconstruction` has a tokenizer's numbers,
`reconstruction_report` its table and its sheet of pictures.
"""
