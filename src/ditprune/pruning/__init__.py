"""PRUNING: what would be done, done to a module or a folder, and checked. See README.md."""
