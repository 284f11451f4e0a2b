"""2:4 layers: every check and refusal on a CPU, with torch's own tensors; products on a GPU."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import ditprune
from ditprune.errors import KernelError, RecipeError
from ditprune.runtime import SemiStructuredLinear, desparsify_, sparsify_, swap
from ditprune.runtime import semi_structured as semi
from ditprune.runtime.backends import SemiStructured
from on_cuda import always_two_of_four

pytestmark = pytest.mark.no_compiler
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: torch's 2:4 products run on GPUs only"
)


def compress_on_cpu(weight: Tensor) -> Tensor:
    """torch's 2:4 tensor as its CUTLASS path packs it, which is plain tensor work."""
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None)


def two_of_four_(linear: nn.Linear) -> nn.Linear:
    """Keep two of each four inputs, other ones from group to group."""
    with torch.no_grad():
        groups = linear.weight.view(-1, 4)
        order = torch.rand(groups.shape).argsort(1)
        groups.scatter_(1, order[:, :2], 0)
    return linear


def linear_of(rows: int = 64, columns: int = 128, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    return two_of_four_(nn.Linear(columns, rows)).to(dtype)


class OnCpuLinear(SemiStructuredLinear):
    _compress = staticmethod(compress_on_cpu)


def sparse_of(linear: nn.Linear) -> SemiStructuredLinear:
    return OnCpuLinear(linear)


class OnCpu(SemiStructured):
    """The backend without its device: layers convert and products are left out; times are given."""

    device: ClassVar[str] = "cpu"
    times: ClassVar[tuple[float, float]] = (2.0, 1.0)

    def check(self) -> None:
        pass

    def obstacle(self, linear: nn.Linear) -> str:
        return semi.weight_obstacle(linear.weight)

    def sparse(self, linear: nn.Linear, counts: Any) -> SemiStructuredLinear:
        return sparse_of(linear)

    def seconds(self, works: list[Any], device: str, cold: Tensor, limit_s: float) -> list[float]:
        assert (len(works), device) == (2, "cpu")
        return list(self.times)


class Slower(OnCpu):
    times = (1.0, 1.0)


def test_two_of_four_is_at_most_two_in_each_four_inputs_of_a_row() -> None:
    weight = torch.tensor([[1.0, 2, 0, 0, 0, 0, 0, 3], [0, 0, 0, 0, 1, 0, 1, 0]])
    assert semi.is_two_of_four(weight)
    for four_of_eight in ([1.0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0]):
        assert not semi.is_two_of_four(torch.tensor([four_of_eight]))
    assert not semi.is_two_of_four(weight[:, 1:])
    assert not semi.is_two_of_four(weight[:, :7])


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "reason"),
    [
        (64, 128, torch.float16, ""),
        (64, 128, torch.float32, "torch.float32, and 2:4 needs float16 or bfloat16"),
        (48, 128, torch.bfloat16, r"[48, 128], and 2:4 needs multiples of [32, 64]"),
        (64, 96, torch.bfloat16, r"[64, 96], and 2:4 needs multiples of [32, 64]"),
    ],
)
def test_weights_that_no_kernel_takes(rows, columns, dtype, reason) -> None:
    found = semi.weight_obstacle(linear_of(rows, columns, dtype).weight)
    assert reason in found
    assert bool(found) == bool(reason)


def test_patterns_and_numbers_that_no_kernel_takes() -> None:
    weight = linear_of().weight.detach()
    wrong = weight.clone()
    wrong[3, 4:8] = torch.tensor([1, 1, 1, 0])
    assert semi.weight_obstacle(wrong) == (
        "its zeros are not 2:4, and no other pattern has a GPU kernel"
    )
    weight[weight != 0] = float("inf")
    assert semi.weight_obstacle(weight) == "its weight holds NaN or Inf"


def test_the_multiples_are_those_of_both_of_torchs_kernels() -> None:
    for kernel in (SparseSemiStructuredTensorCUTLASS, SparseSemiStructuredTensorCUSPARSELT):
        for dtype in semi.DTYPES:
            least = kernel._DTYPE_SHAPE_CONSTRAINTS[dtype]
            assert semi.ROWS % least.sparse_min_rows == 0
            assert semi.COLUMNS % least.sparse_min_cols == 0


def test_a_layer_off_the_gpu_stays_dense_with_its_reason() -> None:
    assert "on cpu, and 2:4 runs on CUDA devices only" in SemiStructured().obstacle(linear_of())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_backend_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(linear_of())
    with pytest.raises(KernelError, match="semi-structured: torch finds no CUDA device"):
        sparsify_(model, backend="semi-structured")
    assert type(model[0]) is nn.Linear


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(RecipeError, match="backend='semi-structure': did you mean"):
        sparsify_(nn.Sequential(linear_of()), backend="semi-structure")


def test_layers_that_win_are_converted_and_come_back(same_bits) -> None:
    dense = linear_of()
    dense.weight.data[0, 1:4] = 1  # three of four
    model = nn.Sequential(linear_of(), nn.GELU(), dense)
    state = copy.deepcopy(model.state_dict())
    decisions = sparsify_(model, backend=OnCpu())
    assert isinstance(model[0], SemiStructuredLinear)
    assert type(model[2]) is nn.Linear
    assert decisions["0"].is_swapped
    assert dict(decisions["0"].dense_s) == dict.fromkeys(swap.NUM_TOKENS, 2.0)
    assert decisions["0"].size_bytes == model[0].size_bytes == 64 * 128 * 9 // 8
    assert "not 2:4" in decisions["2"].reason
    for name, tensor in model.state_dict().items():
        same_bits(tensor, state[name])
    assert desparsify_(model) == ["0"]
    assert type(model[0]) is nn.Linear
    for name, tensor in model.state_dict().items():
        same_bits(tensor, state[name])


def test_layers_that_do_not_win_stay() -> None:
    model = nn.Sequential(linear_of())
    decisions = sparsify_(model, backend=Slower())
    assert decisions["0"].reason == (
        "1.00× as fast with 2 and 512 tokens; pass a call to time it with its own number"
    )
    assert type(model[0]) is nn.Linear


def test_a_copy_is_its_own_and_a_pickle_is_refused(same_bits) -> None:
    model = nn.Sequential(sparse_of(linear_of()))
    other = copy.deepcopy(model)
    same_bits(other[0].weight, model[0].weight)
    other[0].compressed.packed.zero_()
    assert model[0].weight.count_nonzero() == 64 * 64
    assert other[0].bias is not model[0].bias
    with pytest.raises(KernelError, match="cannot be pickled; save its state_dict"):
        pickle.dumps(model)


def test_another_dtype_or_device_is_refused_and_the_same_is_not() -> None:
    model = nn.Sequential(sparse_of(linear_of()))
    assert model.to("cpu", torch.bfloat16) is model
    for change in (lambda: model.float(), lambda: model.to("meta"), lambda: model.half()):
        with pytest.raises(KernelError, match="call desparsify_ first"):
            change()
    assert model[0].bias.dtype == torch.bfloat16


def test_inputs_that_do_not_fit_are_refused() -> None:
    sparse = sparse_of(linear_of())
    with pytest.raises(KernelError, match=r"inputs are torch\.float32 on cpu, expected torch\.bf"):
        sparse(torch.ones(2, 128))
    with pytest.raises(KernelError, match="runs without gradients only"):
        sparse(torch.ones(2, 128, dtype=torch.bfloat16, requires_grad=True))


def test_a_state_dict_is_loaded_or_refused_with_the_reason(same_bits) -> None:
    model, other = nn.Sequential(sparse_of(linear_of())), linear_of()
    other.weight.data.mul_(2)
    model.load_state_dict({"0.weight": other.weight.float(), "0.bias": other.bias})
    same_bits(model[0].weight, other.weight.detach())
    wrong = {"0.weight": torch.ones(64, 128), "0.bias": other.bias}
    with pytest.raises(RuntimeError, match=r"0\.weight: its zeros are not 2:4.*call desparsify_"):
        model.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict({"0.bias": other.bias})
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight: got \[64, 64\]"):
        model.load_state_dict({**wrong, "0.weight": torch.ones(64, 64)})


class DenseProduct(SparseSemiStructuredTensorCUTLASS):
    """torch's 2:4 tensor on a CPU: its own way up to the product, which is a dense one."""

    def _mm(self, B: Tensor, *, bias: Tensor | None = None, **_: Any) -> Tensor:
        assert B.is_contiguous()
        return F.linear(B, self.to_dense(), bias)


class DenseProductLinear(SemiStructuredLinear):
    @staticmethod
    def _compress(weight: Tensor) -> Tensor:
        packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
        return DenseProduct(weight.shape, packed, meta, None, None, None)


def inputs_of_any_strides(device: str) -> list[Tensor]:
    """[..., 256]: contiguous, transposed, with steps, a single row, no row."""
    draw = torch.randn(24, 3, 256, generator=torch.Generator().manual_seed(0))
    draw = draw.to(device, torch.bfloat16)
    columns_first = draw.mT.contiguous().mT
    return [draw, columns_first, draw[::2, 1:], columns_first[0, 0], draw[:0]]


def check_products(sparse: SemiStructuredLinear, linear: nn.Linear, inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(sparse(inputs), linear(inputs), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("has_bias", [True, False])
def test_inputs_of_any_strides_reach_torchs_product(has_bias) -> None:
    linear = linear_of(128, 256)
    linear.bias = linear.bias if has_bias else None
    sparse = DenseProductLinear(linear)
    for inputs in inputs_of_any_strides("cpu"):
        check_products(sparse, linear, inputs)


@needs_gpu
def test_products_on_a_gpu_are_the_dense_ones() -> None:
    linear = linear_of(1152, 1152).cuda()
    sparse = SemiStructuredLinear(linear)
    torch.testing.assert_close(sparse.weight, linear.weight.detach(), rtol=0, atol=0)
    for shape in ((2, 1152), (2, 77, 1152)):
        check_products(sparse, linear, torch.randn(shape, dtype=torch.bfloat16, device="cuda"))
    linear = linear_of(128, 256).cuda()
    for inputs in inputs_of_any_strides("cuda"):
        check_products(SemiStructuredLinear(linear), linear, inputs)


@needs_gpu
def test_a_denoiser_on_a_gpu_is_swapped_where_it_wins_and_comes_back(same_bits) -> None:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    denoiser = DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, num_layers=2, in_channels=4,
        sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
    ).to("cuda", torch.bfloat16).eval()  # fmt: skip
    ditprune.prune_(denoiser, saliency="magnitude", pattern="2:4")
    state = copy.deepcopy(denoiser.state_dict())
    call = {
        "hidden_states": torch.randn(64, 4, 32, 32, device="cuda", dtype=torch.bfloat16),
        "timestep": torch.full((64,), 500, device="cuda"),
        "class_labels": torch.zeros(64, dtype=torch.long, device="cuda"),
    }
    with torch.no_grad():
        dense = denoiser(**call).sample
    before = torch.cuda.memory_allocated()
    decisions = sparsify_(denoiser, call, backend=always_two_of_four())
    swapped = [name for name, one in decisions.items() if one.is_swapped]
    saved = sum(
        2 * math.prod(decisions[name].shape) - decisions[name].size_bytes for name in swapped
    )
    assert swapped, "not one layer of 16,384 tokens won"
    assert before - torch.cuda.memory_allocated() > 0.9 * saved > 0
    with torch.no_grad():
        sparse = denoiser(**call).sample
        other = copy.deepcopy(denoiser)(**call).sample
    assert (sparse - dense).float().norm() < 0.02 * dense.float().norm()
    same_bits(other, sparse)
    for name, tensor in denoiser.state_dict().items():
        assert (tensor == state[name]).all(), name
    assert sorted(desparsify_(denoiser)) == sorted(swapped)
    assert not any(isinstance(module, SemiStructuredLinear) for module in denoiser.modules())
