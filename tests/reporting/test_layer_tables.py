"""Tables of layers: by list of blocks, role and depth."""

from __future__ import annotations

from typing import Any

from ditprune.reporting.sections import heterogeneity_tables, sparsity_tables


def target(name: str, role: str, depth: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "depth": depth, "shape": [4, 6], "sparsity": 0.333,
            "g_out": 0.5, "granularity": "layer", **more}  # fmt: skip


TARGETS = [
    target("transformer_blocks.0.attn.to_q", "attn.to_q", 0, sparsity=0.5, g_out=0.1),
    target("transformer_blocks.2.attn.to_q", "attn.to_q", 2, g_out=0.3, granularity="2:4"),
    target("transformer_blocks.2.ff", "ff", 2, g_out=None),
    target("single_blocks.0.attn.to_q", "attn.to_q", 0, g_out=0.2, granularity="channel"),
]


def test_lists_of_blocks_stand_apart_and_gaps_stay_gaps() -> None:
    first, second = sparsity_tables(TARGETS)
    assert (first.blocks, first.depths) == ("transformer_blocks", (0, 2))
    (role, cells), (_, others) = first.rows
    assert role == "attn.to_q"
    assert [cell and cell.text for cell in cells] == ["50", "33.3"]
    assert [cell and cell.text for cell in others] == [None, "33.3"]
    assert (second.blocks, second.depths) == ("single_blocks", (0,))


def test_shades_span_all_layers_of_the_model() -> None:
    first, second = heterogeneity_tables(TARGETS)
    cells = [cell for table in (first, second) for _, row in table.rows for cell in row if cell]
    assert [(c.text, c.share, c.group) for c in cells] == [
        ("0.10", 0.0, "L"), ("0.30", 1.0, "2:4"), ("–", None, "L"),
        ("0.20", (0.2 - 0.1) / (0.3 - 0.1), "C"),
    ]  # fmt: skip


def test_one_shade_where_all_are_alike() -> None:
    (table,) = heterogeneity_tables(TARGETS[:1])
    assert table.rows[0][1][0].share is None  # type: ignore[union-attr]


def test_who_competed_may_be_unknown() -> None:
    """As of a folder without a manifest."""
    unknown = [target(one["name"], one["role"], one["depth"], g_out=None, granularity=None)
               for one in TARGETS]  # fmt: skip
    assert heterogeneity_tables(unknown) == []
    assert len(sparsity_tables(unknown)) == 2
    first, _ = heterogeneity_tables([unknown[0], *TARGETS[1:]])
    cell = first.rows[0][1][0]
    assert cell is not None
    assert (cell.text, cell.group, cell.group_name) == ("–", "", "")
