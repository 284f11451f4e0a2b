"""`python -m ditprune` is the command line."""

from ditprune.cli.main import main

main()
