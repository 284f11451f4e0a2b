"""HOW MUCH PER LAYER: how many weights each target loses when all lose a given number together.

Pure numbers: what a layer's loss costs is measured elsewhere and comes in as a curve.

`uniform`: the same share of each. `owl`: more of layers with few outliers. `sensitivity`: where
the denoiser's output suffers least, measured end to end layer by layer. `proxy`: the same from each
layer's own error and one backward pass, for models too large to measure.
"""

ALLOCATIONS = ("uniform", "owl", "sensitivity", "proxy")
