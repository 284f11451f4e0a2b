"""WHAT FLOWS IN: sampling a pipeline, capturing and replaying denoiser calls, observing inputs."""
