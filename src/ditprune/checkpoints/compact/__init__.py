"""SMALLER ON DISK: a pruned weight as its nonzero values and their positions, bit for bit.

See README.md.
"""
