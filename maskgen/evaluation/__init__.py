"""How good the images are: FID and its kin, reconstruction, features; always with all that made a number.

`evaluate` joins the parts in the order data meets them: `opening` finds out what is compared (`sources`, read by
`image_files` and `references`), `sampling` draws it, `inception` is the network (`classifier` a small stand-in that
needs no download), `extraction` makes features that outlive a kill, `statistics` and `metrics` are the mathematics,
`report` is what is said and whether it may be compared. `sweep` repeats it, `command` is `maskgen evaluate`.
`reconstruction` has a tokenizer's numbers, `reconstruction_report` its table and its sheet of images.
"""
