"""HOW GOOD: same-seed samples of the dense and the pruned models, measured into results.json."""
