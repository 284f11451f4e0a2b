"""How many operations does updating one layer take? From its shape alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ditprune.method.recipe import Recipe
from ditprune.method.reconstruction.admm import ADMM
from ditprune.pruning.row_cost import RowCost
from ditprune.pruning.update.budgets import LEVELS
from ditprune.pruning.update.layers import ROWS_OF_CURVE
from ditprune.targets.discover import Target

_PRODUCTS_OF_OTHERS = 1.5


def gram_operations(targets: Mapping[str, Target], row: RowCost) -> float:
    """Of the Grams of one row."""
    return sum(2.0 * row.num_tokens[name] * t.shape[1] ** 2 for name, t in targets.items())


def factor_operations(target: Target, recipe: Recipe) -> float:
    """Of the factor of a Gram and its inverse."""
    return float(target.shape[1] ** 3) if recipe.reconstructs else 0.0


def solve_operations(target: Target, recipe: Recipe) -> float:
    """Of the products with the Gram, its factor or its inverse, for one mask."""
    if not recipe.reconstructs:
        return 0.0
    method = recipe.reconstruction
    products = method.num_products if isinstance(method, ADMM) else _PRODUCTS_OF_OTHERS
    return products * _product(target)


def curve_operations(target: Target, recipe: Recipe) -> float:
    """Of the errors at all levels, which some rows tell."""
    method, (num_out, num_in) = recipe.reconstruction, target.shape
    part = replace(target, shape=(min(num_out, ROWS_OF_CURVE), num_in))
    if isinstance(method, ADMM):
        return (1 + len(LEVELS) * method.num_products_of_error) * _product(part)
    return len(LEVELS) * solve_operations(part, recipe)


def _product(target: Target) -> float:
    num_out, num_in = target.shape
    return 2.0 * num_out * num_in**2
