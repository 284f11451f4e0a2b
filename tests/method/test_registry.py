"""What the pruning loop may assume of every saliency in the registry."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ditprune.method.saliency import SALIENCIES
from ditprune.method.saliency.power import STW, Magnitude, Power
from ditprune.method.statistics.column_norm import ColumnNorm


@pytest.mark.parametrize("name", SALIENCIES)
def test_an_entry_is_a_frozen_value_that_knows_its_name_and_needs(name: str) -> None:
    constants = {"weight_power": 2, "activation_power": 1} if name == "power" else {}
    saliency, twin = (SALIENCIES[name](**constants) for _ in range(2))
    assert saliency.name == name
    assert isinstance(saliency.needs, frozenset)
    assert saliency.needs <= {ColumnNorm}
    assert saliency == twin
    assert hash(saliency) == hash(twin)
    for field in dataclasses.fields(saliency):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(saliency, field.name, 7)
    norms = {"norm": torch.ones(3)} if ColumnNorm in saliency.needs else {}
    assert saliency(torch.ones(2, 3), **norms).shape == (2, 3)


def test_the_names_are_those_of_the_command_line() -> None:
    assert list(SALIENCIES) == ["magnitude", "wanda", "stw", "power", "ria"]


def test_only_what_reads_activations_needs_them() -> None:
    assert Magnitude().needs == Power(2, 0).needs == frozenset()
    for name in ("wanda", "stw", "ria"):
        assert SALIENCIES[name]().needs == {ColumnNorm}


def test_the_default_of_stw_is_the_papers() -> None:
    assert (STW().weight_power, STW().activation_power) == (2, 1)
