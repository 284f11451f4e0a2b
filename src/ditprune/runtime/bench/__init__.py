"""DOES IT PAY HERE: dense and sparse, timed on this machine."""
