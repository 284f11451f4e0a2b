"""WHAT WE REMEMBER of the inputs of a layer; each statistic is pure and mergeable."""
