"""HOW DOES A DENOISER RUN BLOCK BY BLOCK? With the weights and the inputs of one block at a time.

`chain.py` says whether its blocks chain, and enters them; `residence.py` where their weights are;
`states.py` where hidden states are kept; `sweep.py` goes forwards and backwards through the blocks.
"""
