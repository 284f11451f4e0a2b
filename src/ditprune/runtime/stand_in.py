"""What do all layers that replace a Linear have in common, however they store the weight?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class StandIn(nn.Module):
    """Replaces a Linear for inference, with the state dict of that Linear.

    `weight` is saved dense, and packed again when it is loaded. The class is no `nn.Linear`, so
    that code which writes into `linear.weight` refuses it instead of writing into a copy.

    A subclass defines how the weight is stored (`_hold`), its device and dtype (`_like`), how it
    is read back (`_dense`) and multiplied (`forward`).
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_requires_grad = linear.weight.requires_grad
        self.register_parameter("bias", linear.bias)
        self.num_reads = 0  # of `weight`, by code that does not call the layer
        self._hold(linear.weight.detach())
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight, a new tensor at each access; writing into it changes nothing."""
        self.num_reads += 1
        return self._dense()

    def _dense(self) -> Tensor:
        """The dense weight, a new tensor."""
        raise NotImplementedError

    @property
    def size_bytes(self) -> int:
        """The size of the weight as it is stored."""
        raise NotImplementedError

    @property
    def _like(self) -> Tensor:
        """A tensor on the device and of the dtype that a weight must have."""
        raise NotImplementedError

    def _hold(self, weight: Tensor) -> None:
        """Store a dense weight [C_out, C_in]."""
        raise NotImplementedError

    def _obstacle(self, weight: Tensor) -> str:
        """Why a weight cannot be stored; empty if it can."""
        return ""

    def to_linear(self) -> nn.Linear:
        """The Linear that it replaced, with the same bias object."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self._dense(), requires_grad=self.weight_requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self)  # type: ignore[arg-type]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self._dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any],
        strict: bool, missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        key = f"{prefix}weight"
        weight = state_dict.get(key)
        if weight is None:
            missing_keys.append(key)
        elif tuple(weight.shape) != (self.out_features, self.in_features):
            error_msgs.append(
                f"size mismatch for {key}: got {list(weight.shape)}, expected "
                f"{[self.out_features, self.in_features]}"
            )
        else:
            weight = weight.to(self._like)
            reason = self._obstacle(weight)
            if reason:
                error_msgs.append(f"{key}: {reason}; call desparsify_ before loading it")
            else:
                self._hold(weight)
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
