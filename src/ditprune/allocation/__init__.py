"""HOW MUCH PER LAYER: how many weights each target loses when all lose a given number together.

Pure numbers: what a layer's loss costs is measured elsewhere and comes in as a curve.
"""
