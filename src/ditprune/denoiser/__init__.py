"""THE DENOISER: load it, place it, call it."""
