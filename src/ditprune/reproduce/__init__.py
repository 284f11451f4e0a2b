"""The paper's studies, repeated with any model: arXiv 2607.00927v2, its tables and figures.

A study is data (`studies.json`). `rows.py` turns it, with the user's options, into rows: a method
at a setting, with the dense model first. `run.py` goes through the rows, `workbench.py` makes one:
it calibrates, prunes, draws and measures with the functions of those rooms, so that a row is what
`ditprune evaluate` says of the same model. Two studies draw no images; `look.py` has them.
`findings.py` compares what came out with the paper's claims, and `tables.py` and `figures.py` show
it.

- Rows under one protocol share the pipeline, the held-out calls and the dense images, because a
  study has dozens of rows; only the denoiser is exchanged.
- Finished rows stay in `.work`, under a hash of the model, the versions, the protocol, the recipe
  and the calibration. Studies share them, and a study that was stopped goes on. The pruned model
  and the images of a row are removed once it is measured.
- With another model than the bundled one, steps and guidance are its pipeline's own.
- Verdicts follow from the numbers by rule; nobody writes them. What the paper does not give is
  left out, not estimated.
"""
