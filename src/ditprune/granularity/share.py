"""How many stay where a share of each group is removed."""

from __future__ import annotations


class Share:
    """Groups whose kept count follows from the sparsity asked for."""

    def num_keep(self, group_size: int, sparsity: float | None) -> int:
        """How many weights of a group stay: all but round(sparsity · group_size)."""
        assert sparsity is not None
        return group_size - round(sparsity * group_size)
