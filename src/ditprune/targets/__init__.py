"""WHERE: which layers of a denoiser are pruned, and why the rest is not. See README.md."""
