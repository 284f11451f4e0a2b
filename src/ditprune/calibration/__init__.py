"""WHAT FLOWS IN: sample a pipeline, observe its denoiser's calls, keep statistics. See README.md."""
