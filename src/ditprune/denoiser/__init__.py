"""THE DENOISER: load it, place it, call it. See README.md."""
