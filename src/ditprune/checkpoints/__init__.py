"""ON DISK: what lies in a model folder, and how it is rewritten.

    locate           which folder is MODEL, and which of its components are denoisers
    skeleton         a denoiser's module tree without weights, and its fingerprints
    weights          its tensors, one at a time, and where they lie in the shards
    rewrite_tensors  every tensor once, read ahead and written behind, resumable
    copy_folder      all other files
    statistics_file, calibration_set, mask_file    the files of ours
    compact/         sparse weights made smaller
    hub              a folder as a repository

A pipeline may have several denoisers: components from diffusers whose class is a transformer or a
model, but no autoencoder, ControlNet or projection. Each has statistics and a manifest of its own.

A fingerprint for each target (its name, its shape and three runs of values as float32) ties
statistics to weights: it is the same for a half-precision folder and for that model loaded in
float32, and different for a fine-tune.

safetensors files only: pickles are never loaded, and no path leads out of the model or of OUT.
"""
