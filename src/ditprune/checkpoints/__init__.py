"""ON DISK: what lies in a model folder, and how it is rewritten. See README.md."""
