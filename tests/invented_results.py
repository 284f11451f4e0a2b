"""Results as `ditprune evaluate` would write them, invented: two pruned models, every metric."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

NAMES = ("stw 50", "magnitude 50")
_METRICS: dict[str, tuple[str, str, str, int, str]] = {
    "relative_error": ("relative error", "lower", "", 4, "dense"),
    "ssim": ("SSIM", "higher", "", 3, "dense"),
    "psnr": ("PSNR", "higher", "dB", 1, "dense"),
    "fid": ("FID", "lower", "", 3, "real"),
    "accuracy": ("accuracy", "higher", "", 3, "condition"),
}
# Of each model: value, low, high.
_VALUES: dict[str, dict[str, tuple[float, float | None, float | None] | None]] = {
    "dense": {
        "relative_error": None, "ssim": None, "psnr": None,
        "fid": (0.083, 0.070, 0.100), "accuracy": (1.0, 1.0, 1.0),
    },
    "stw 50": {
        "relative_error": (0.0206, 0.019, 0.022), "ssim": (0.967, 0.964, 0.970),
        "psnr": (26.3, 26.1, 26.5), "fid": (0.072, 0.060, 0.088), "accuracy": (0.999, 0.997, 1.0),
    },
    "magnitude 50": {
        "relative_error": (0.386, None, None), "ssim": (0.745, 0.735, 0.755),
        "psnr": (13.9, 13.5, 14.3), "fid": (0.655, 0.61, 0.70), "accuracy": (0.88, 0.86, 0.90),
    },
}  # fmt: skip
_ROLES = ("norm1.linear", "attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")


def results(num_samples: int = 5) -> dict[str, Any]:
    """A fresh copy, to spoil."""
    unavailable = {
        "title": "CLIP score", "better": "higher", "unit": "", "digits": 2, "against": "condition",
        "unavailable": "no CLIP weights; pass --clip FOLDER", "note": None,
    }  # fmt: skip
    return {
        "format": 2,
        "command": "ditprune evaluate bundled 'stw 50' 'magnitude 50' -o evaluation",
        "protocol": {
            "num_images": 1000, "seed": 0, "num_inference_steps": 25, "guidance_scale": 1.5,
            "labels": list(range(10)), "prompts": None, "scheduler": "DDIMScheduler",
            "resolution": [32, 32], "dtype": "float32", "device": "cpu",
            "versions": {"ditprune": "0.1", "torch": "2.13"}, "feature_extractor": "the classifier",
            "reference": "10,000 test images",
        },
        "metrics": {
            key: {
                "title": title, "better": better, "unit": unit, "digits": digits,
                "against": against, "unavailable": None, "note": None,
            }
            for key, (title, better, unit, digits, against) in _METRICS.items()
        } | {"clip_score": unavailable},
        "models": [_model("dense", 0.0), *(_model(name, 0.5) for name in NAMES)],
        "gallery": [_sample(number) for number in range(num_samples)],
    }  # fmt: skip


def picture(level: int, side: int = 32) -> str:
    """A data URI of a PNG of one grey."""
    out = io.BytesIO()
    Image.new("L", (side, side), level).save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _model(name: str, sparsity: float) -> dict[str, Any]:
    is_dense = name == "dense"
    places = [] if is_dense else [(2 * number + 1) / 20 for number in range(10)]
    return {
        "name": name,
        "sparsity_asked": sparsity,
        "sparsity": sparsity,
        "recipe": None if is_dense else {"saliency": name.split()[0], "sparsity": sparsity},
        "command": None if is_dense else f"ditprune prune bundled -o '{name}'",
        "metrics": {
            key: value and dict(zip(("value", "low", "high"), value, strict=True))
            for key, value in _VALUES[name].items()
        }
        | {"clip_score": None},
        "warnings": [f"FID of {name} is below dense"] if name == "stw 50" else [],
        "error_by_timestep": [
            {"timestep": 1000 * (1 - place), "place": place, "error": 0.01 + place / 10,
             "num_rows": 13}
            for place in places
        ],
        "accounting": {
            "num_parameters": 5_578_736, "num_nonzero": int(5_578_736 * (1 - 0.8 * sparsity)),
            "size_bytes": 11_200_000, "macs_per_step": 61_000_000,
            "macs_per_step_effective": int(61_000_000 * (1 - 0.9 * sparsity)),
            "macs_per_image": None, "macs_per_image_effective": None, "seconds_per_image": 0.0123,
        },
        "targets": [] if is_dense else [
            {"name": f"transformer_blocks.{depth}.{role}", "role": role, "depth": depth,
             "shape": [160, 160], "sparsity": 0.5, "g_out": 0.2 + depth / 20 + len(role) / 50,
             "granularity": "channel" if depth > 4 else "layer"}
            for depth in range(8) for role in _ROLES
        ],
    }  # fmt: skip


def _sample(number: int) -> dict[str, Any]:
    """Dense is white, the others nearly black; the two models disagree on which is worst."""
    return {
        "index": 10 + number,
        "condition": str(number),
        "seed": 1000 + number,
        "images": {
            "dense": picture(255), "stw 50": picture(10 + number), "magnitude 50": picture(40),
        },
        "ssim": {"stw 50": 0.9 + number / 100, "magnitude 50": 0.8 - number / 100},
    }  # fmt: skip
