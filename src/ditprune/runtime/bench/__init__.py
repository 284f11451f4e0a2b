"""DOES IT PAY HERE: dense and sparse layers and steps, timed on this machine."""
