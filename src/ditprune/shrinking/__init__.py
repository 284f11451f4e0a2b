"""Which heads, neurons, blocks and ranks go, and how does a smaller dense model come of it?"""
