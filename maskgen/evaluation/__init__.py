"""How good the pictures are: FID and its kin, reconstruction, features; always with all that made a number.

`evaluate` joins the parts in the order data meets them: `sources` and `references` read what is compared, `sampling`
draws it, `inception` is the network (`classifier` a small stand-in that needs no download), `extraction` makes features
that outlive a kill, `statistics` and `metrics` are the mathematics, `report` what is said and may be compared. `sweep`
repeats it, `command` is `maskgen evaluate`. `reconstruction` has a tokenizer's numbers, `reconstruction_report` its
table and its sheet of pictures.
"""
