"""SMALLER: a pruned weight as its nonzero values and where they stand, bit for bit, and back."""
