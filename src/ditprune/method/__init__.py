"""THE METHOD: pure tensor maths, from a recipe to a mask and new weights.

Start with `recipe.py`: a `Recipe` names one choice for each of the other files.

    recipe          what a run does                        choices         what a word stands for
    saliency/       how much a weight matters              granularity     which weights compete
    masks           which weights of a group stay          allocation      how much per layer
    reconstruction/ new values for the kept weights        distill         constants of the training
    statistics/     what is known of a layer's inputs

Per layer, per channel and N:M are one rule, "keep the k best of each group", with other groups:

    granularity   groups × weights       kept in each group
    layer         1 × C_out·C_in         all but round(sparsity · C_out·C_in)
    channel       C_out × C_in           all but round(sparsity · C_in)
    N:M           C_out·C_in/M × M       N

`round` is Python's (half to even). Equal scores are settled by position. Scores are float32;
exponents that are not correctly rounded go through float64, so that masks do not depend on the
number of threads. CAG chooses `layer` or `channel` for each target by G_out (arXiv 2607.00927,
Eqs. 9 and 10). The paper leaves its threshold open; log/2026-11-22-cag-threshold.md says how ours
was chosen.

The words of a recipe combine freely, with two exceptions: N:M excludes an allocation and
`mask="refinement"`; and a mask chosen by the reconstruction, and `packages`, need a reconstruction.
A `Recipe` checks this when it is made, so code that receives one need not check again. `preset`
stands for several words: `paper` for the defaults; `best` for ADMM with its own mask, budgets by
measured sensitivity, and distillation, which removes the last 8 % by W² √v over all layers together
(v is Adam's mean square of the gradient).

On the inputs of its Gram, no reconstruction is worse than zeroing the same weights, row by row.

The statistics are values: `update` and `merge` return new ones. What one update adds to a column
norm is rounded to float32, so sums of many updates in float64 are exact in any order: one process
or several, at once or resumed, give the same bytes.
"""
