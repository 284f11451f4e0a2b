"""WHERE: which Linears of a denoiser are pruned."""
