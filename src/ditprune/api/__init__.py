"""What does a Python user call? One function for each verb of the command line.

- `given.py` reads what functions are given: a pipeline or a denoiser in memory, calls, statistics.
- `calls.py` samples calls and keeps them; `memory.py` works on what is loaded, `prune_folder.py`
  and `folders.py` on folders.

Functions here check and pass on; the work is in the rooms below. `ditprune/__init__.py` lists what
is public. Every function tells how far it is to `progress`: None shows a bar where stderr is a
terminal, False shows nothing, and a function is called as in `ditprune.progress.Progress`.
"""
