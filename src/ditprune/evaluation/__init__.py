"""How good are pruned models, and what do they cost? Same-seed samples, measured.

`evaluate` is the entry; it writes results.json (format 2) and grid.png. Its steps in order:

1. `protocol` holds what the user asked for. `claims` reads what each pruned folder says of itself.
2. `held_out` samples denoiser calls from seeds that no calibration uses, and compares the noise
   that the dense and the pruned denoisers predict for them.
3. `drawing` draws image i from condition i and seed i, with any model and in any batches. Batches
   are files in `OUT/.images/<key>`, where the key is a hash of weights, files, options and
   versions. So a stopped run draws what is missing, and the dense images serve the next evaluation.
4. `tools` and `extractors` load the networks that the metrics of `catalogue` need. A metric that
   cannot be computed is in the results with the reason instead of a number.
5. `measure` reads the images of one model batch by batch; memory holds one batch and the features
   of two models. The metrics themselves are pure functions in `metrics/`.
6. `accounting` counts parameters, bytes and multiply-accumulates.
7. `results` puts all together, with the warnings of `cautions` and the pictures of `gallery`.

Intervals are bootstrap intervals over images: 200 resamples, or 20 for FID with more than 128
features. Distances of distributions are larger for resamples, since images repeat, so the mean of
the resamples is moved to the value. Shares (accuracy, precision, recall) have Wilson intervals. For
the relative error, latents are resampled, each with all its predictions. Two models are compared
item by item if the metric is a mean over the same items. Without real images, FID and its relatives
are taken against the dense model's images, and the results say so.
"""
