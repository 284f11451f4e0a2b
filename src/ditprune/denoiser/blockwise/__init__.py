"""HOW DOES A DENOISER RUN BLOCK BY BLOCK? With the weights and the inputs of one block at a time.

`find.py` says whether its blocks chain; `chain.py` enters them; `residence.py` says where their
weights are, `states.py` where hidden states are kept; `sweep.py` goes forwards and backwards.
"""
