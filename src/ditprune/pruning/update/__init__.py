"""HOW THE WHOLE ADJUSTS: layer budgets, reconstruction and refinement of a loaded denoiser."""
