"""ALL OR NOTHING: files and folders that appear whole, and work that goes on after a kill.

See README.md.
"""
