"""WHAT FLOWS IN: sample a pipeline, observe the calls of its denoiser, keep statistics."""
