"""What was left to the pipeline in a protocol, and what that came to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ditprune.calibration.draw import condition_argument
from ditprune.evaluation.protocol import Protocol


def resolved(protocol: Protocol, pipeline: Any, drawn: Sequence[Any], num_steps: int) -> Protocol:
    """The protocol with values where it said "the default", for the record.

    Args:
        drawn: the conditions that images drew in turn.
        num_steps: denoising steps that were run.
    """
    words = {"class_labels": "labels", "prompt": "prompts"}
    asked: dict[str, Any] = {words[condition_argument(pipeline)]: tuple(drawn)}
    guidance = protocol.guidance_scale
    return replace(
        protocol,
        num_inference_steps=num_steps,
        guidance_scale=_own_guidance(pipeline) if guidance is None else guidance,
        **asked,
    )


def _own_guidance(pipeline: Any) -> float | None:
    """The pipeline's default guidance scale; None where it has none."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, (int, float)) else None
