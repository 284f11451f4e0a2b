"""The parts of `examples/train_testbeds.py`: two small text-to-image models of drawn scenes."""
