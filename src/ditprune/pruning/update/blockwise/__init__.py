"""HOW ARE WEIGHTS UPDATED ONE BLOCK AT A TIME? Every block from the inputs that it has in the dense
denoiser, so that blocks do not wait for each other and one of them is in memory.

`engine.py` is the order of the work, on what `run.py` holds. `measure.py` goes backwards through
the blocks where the recipe follows the output; `collect.py` takes Grams on the way forwards;
`results.py` keeps what is done; `way.py` says which denoisers and recipes can be taken so.
"""
