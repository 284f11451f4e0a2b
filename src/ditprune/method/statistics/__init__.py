"""WHAT WE REMEMBER of the inputs of a layer: one file per statistic, each pure and mergeable."""
