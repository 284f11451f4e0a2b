"""Stage 1 of `gpu.py`: one Linear dense and 2:4, and which algorithm of cuSPARSELt is fastest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gpu_measure import (
    Clock,
    Log,
    RefusedError,
    medians,
    num_rotated,
    prune_two_of_four_,
    quick_ms,
    reason_of,
    relative_error,
)  # fmt: skip

STAGE = 1
WEIGHTS = ((3072, 12288), (15360, 3072), (3072, 3072), (1152, 4608))
TOKENS = (4608, 4096, 512)
TINY_WEIGHTS, TINY_TOKENS = ((64, 128),), (32, 16)
FP8 = torch.float8_e4m3fn
DTYPES = (torch.bfloat16, FP8, torch.float16)
_TOLERANCE = 2e-2
_MOST_ALGORITHMS = 64  # where cuSPARSELt does not say how many it has
_FAILURES_AT_THE_END = 4


class Choice(NamedTuple):
    """One algorithm of cuSPARSELt."""

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1


@dataclass(frozen=True)
class Found:
    """What a search says of a product.

    Args:
        choice: the fastest.
        library: what cuSPARSELt's own search says; None where it says nothing.
        num_tried, num_refused: candidates, and those that raised or were wrong.
        refusal: the first reason.
    """

    choice: Choice
    library: Choice | None
    num_tried: int
    num_refused: int
    refusal: str


def searched(
    rows: Tensor, compressed: Tensor, bias: Tensor | None, choice: Choice, fused: bool = True
) -> Tensor:
    """rows [N, C_in] times a compressed weight, [N, C_out]; a transposed view unless `fused`."""
    out_dtype = torch.bfloat16 if compressed.dtype == FP8 else None
    out = torch._cslt_sparse_mm(
        compressed, rows.t(), bias, None, out_dtype, fused,
        choice.alg_id, choice.split_k, choice.split_k_mode,
    )  # fmt: skip
    return out if fused else out.t()


def search(
    rows: Tensor, compressed: Tensor, bias: Tensor | None, expected: Tensor, fused: bool = True
) -> Found:
    """The fastest algorithm whose product is right, each timed here."""
    device = str(rows.device)
    library, num_algorithms = _library_search(rows, compressed, bias, fused)
    times: dict[Choice, float] = {}
    refusals: list[str] = []

    def try_(choice: Choice) -> bool:
        if choice in times:
            return True
        work = partial(searched, rows, compressed, bias, choice, fused)
        try:
            error = relative_error(work(), expected)
            if not error < _TOLERANCE:
                raise ValueError(f"{choice}: relative error {error:.3g}")
            times[choice] = quick_ms(work, device)
        except Exception as error:
            refusals.append(reason_of(error))
        return choice in times

    if library is not None:
        try_(library)
    failed = 0
    for alg_id in range(num_algorithms or _MOST_ALGORITHMS):
        failed = 0 if try_(Choice(alg_id)) else failed + 1
        if failed == _FAILURES_AT_THE_END and not num_algorithms:
            break
    for choice in sorted(times, key=lambda one: times[one])[:2]:
        for split in ((-1, -1), (2, 1), (2, 2), (4, 1), (4, 2)):
            try_(Choice(choice.alg_id, *split))
    if not times:
        raise RuntimeError(refusals[0] if refusals else "no algorithm was tried")
    best = min(times, key=lambda one: times[one])
    tried = len(times) + len(refusals)
    return Found(best, library, tried, len(refusals), refusals[0] if refusals else "")


def _library_search(
    rows: Tensor, compressed: Tensor, bias: Tensor | None, fused: bool
) -> tuple[Choice | None, int]:
    """cuSPARSELt's own choice, and how many algorithms it has; 0 where it does not say."""
    out_dtype = torch.bfloat16 if compressed.dtype == FP8 else None
    given = (compressed, rows.t(), bias, None, out_dtype, fused)
    known = torch.backends.cusparselt.get_max_alg_id() or 0
    try:
        *choice, most = torch._C._cusparselt.mm_search(*given)
        return Choice(*map(int, choice)), int(most) or known
    except Exception:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Choice(int(torch._cslt_sparse_mm_search(*given))), known
    except Exception:
        return None, known


def default_two_of_four(weight: Tensor) -> Tensor:
    """torch's own 2:4 tensor, silent about being a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse.to_sparse_semi_structured(weight)


def cutlass_two_of_four(weight: Tensor) -> Tensor:
    """The same by CUTLASS, which has kernels for compute capability 8 only. Raises RefusedError."""
    capability = torch.cuda.get_device_capability()
    if capability[0] != 8:
        raise RefusedError(f"CUTLASS 2:4: needs compute capability 8.x, this is {capability}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense(weight)


class Product:
    """One Linear at a number of tokens: inputs and weights drawn anew, and its paths."""

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int, int], tokens: int, device: str
    ) -> None:
        self.dtype, self.device, self.has_bias = dtype, device, dtype != FP8
        num_out, num_in = shape
        width = 1 if dtype == FP8 else 2
        count = num_rotated(tokens * num_in * width)
        draw = partial(torch.randn, device=device)
        self.inputs = [draw(tokens, num_in).to(dtype) for _ in range(count)]
        self.weight = (draw(num_out, num_in) * num_in**-0.5).to(dtype)
        pruned = prune_two_of_four_(self.weight.float())
        self.pruned = pruned.to(dtype).contiguous()
        out_dtype = torch.bfloat16 if dtype == FP8 else dtype
        self.bias = draw(num_out).to(out_dtype) if self.has_bias else None
        self.one = torch.ones((), device=device)
        self.notes: dict[str, Any] = {}

    def exact(self, rows: Tensor) -> Tensor:
        """With the pruned weight, in float32."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(rows.float(), self.pruned.float(), bias)

    def dense(self) -> Callable[[Tensor], Tensor]:
        """What a dense layer computes, at full weights: zeros would draw less power."""
        return self._dense(self.weight)

    def dense_with_zeros(self) -> Callable[[Tensor], Tensor]:
        return self._dense(self.pruned)

    def _dense(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        if self.dtype == FP8:
            return lambda x: torch._scaled_mm(
                x, weight.t(), self.one, self.one, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        return lambda x: F.linear(x, weight, self.bias)

    def default(self) -> Callable[[Tensor], Tensor]:
        sparse = default_two_of_four(self.pruned)
        if self.dtype == FP8:
            return lambda x: torch._scaled_mm(
                sparse, x.t(), self.one, self.one, out_dtype=torch.bfloat16
            ).t()
        return lambda x: F.linear(x, sparse, self.bias)

    def cutlass(self) -> Callable[[Tensor], Tensor]:
        sparse = cutlass_two_of_four(self.pruned)
        return lambda x: F.linear(x, sparse, self.bias)

    def by_search(self, fused: bool) -> Callable[[Tensor], Tensor]:
        compressed, rows = torch._cslt_compress(self.pruned), self.inputs[0]
        found = search(rows, compressed, self.bias, self.exact(rows), fused)
        self.notes["searched" if fused else "searched view"] = {
            "choice": found.choice, "library": found.library, "num_tried": found.num_tried,
            "num_refused": found.num_refused, "refusal": found.refusal,
        }  # fmt: skip
        return lambda x: searched(x, compressed, self.bias, found.choice, fused)

    def paths(self) -> Iterator[tuple[str, Callable[[], Callable[[Tensor], Tensor]]]]:
        yield "dense", self.dense
        yield "dense with zeros", self.dense_with_zeros
        yield "default", self.default
        yield "searched", partial(self.by_search, True)
        if self.dtype == torch.bfloat16:  # what a transposed result would give, once
            yield "searched view", partial(self.by_search, False)
        if self.device.startswith("cuda") and self.dtype != FP8:
            yield "cutlass", self.cutlass


@torch.no_grad()
def measure(dtype: torch.dtype, shape: tuple[int, int], tokens: int, device: str) -> dict[str, Any]:
    """The row of one product: milliseconds and gain over dense by path, and who was refused."""
    product = Product(dtype, shape, tokens, device)
    run: dict[str, Callable[[Tensor], Tensor]] = {}
    refused: dict[str, str] = {}
    errors: dict[str, float] = {}
    contiguous: dict[str, bool] = {}
    fresh = torch.randn(product.inputs[0].shape, device=device).to(dtype)
    expected = product.exact(fresh)
    for path, make in product.paths():
        try:
            run[path] = make()
            out = run[path](fresh)
            errors[path], contiguous[path] = relative_error(out, expected), out.is_contiguous()
        except Exception as error:
            run.pop(path, None)
            refused[path] = str(error) if isinstance(error, RefusedError) else reason_of(error)
    errors.pop("dense", None)  # it has the other half of the weights too
    del expected, fresh
    works = {path: [partial(one, inputs) for inputs in product.inputs] for path, one in run.items()}
    alone, eager = medians(works, device, True), medians(works, device, False)
    return {
        "dtype": str(dtype).removeprefix("torch."), "shape": shape, "tokens": tokens,
        "bias": product.has_bias, "ms": alone, "eager_ms": eager, "gain": _gains(alone),
        "eager_gain": _gains(eager), "errors": errors, "is_right": _are_right(errors),
        "is_contiguous": contiguous, "refusals": refused, "search": product.notes,
    }  # fmt: skip


def _gains(times: dict[str, float]) -> dict[str, float]:
    dense = times.get("dense")
    return {path: dense / ms for path, ms in times.items() if dense and path != "dense"}


def _are_right(errors: dict[str, float]) -> dict[str, bool]:
    return {path: error < _TOLERANCE for path, error in errors.items()}


def run(log: Log, clock: Clock, device: str, is_tiny: bool) -> None:
    """Every product, in the order of its value; each dtype at the largest number first."""
    weights, tokens = (TINY_WEIGHTS, TINY_TOKENS) if is_tiny else (WEIGHTS, TOKENS)
    asked = [(dtype, shape, n) for dtype in DTYPES for n in tokens for shape in weights]
    for dtype, shape, n in asked:
        name = f"{str(dtype).removeprefix('torch.')} {shape[0]}×{shape[1]} at {n}"
        log.row(STAGE, name, partial(measure, dtype, shape, n, device), min(20.0, clock.left_s))
