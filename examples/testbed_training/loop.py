"""The loop that every stage shares: schedule, moving average, checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .settings import Settings

Loss = Callable[[int, torch.Generator], Tensor]
CONSTANT_SHARE = 0.4  # of the run at the full rate; then it falls linearly to 0


def step_generator(device: str, stage: str, step: int) -> torch.Generator:
    """Every step draws from its own seed, so a resumed run draws what the first would have."""
    number = ("autoencoder", "pixart", "flux", "decoder").index(stage) + 1
    return torch.Generator(device).manual_seed(number * 100_000_000 + step)


def precision(settings: Settings) -> torch.autocast:
    """bfloat16 on a GPU unless it is switched off, float32 on a CPU."""
    is_enabled = settings.device == "cuda" and settings.autocast
    return torch.autocast(settings.device, torch.bfloat16, enabled=is_enabled)


def prepare_device(device: str) -> None:
    """Let a GPU multiply as fast as it can."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


class Run:
    """One stage's parameters with their optimizer, moving average and clock."""

    def __init__(self, stage: str, modules: Mapping[str, nn.Module], settings: Settings) -> None:
        self.stage, self.settings = stage, settings
        self.modules = dict(modules)
        self.parameters = [p for m in self.modules.values() for p in m.parameters()]
        if settings.start is not None:
            self._start_from(settings.start)
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.rate, weight_decay=0, betas=(0.9, 0.99), fused=True
        )
        self.state = {"step": 0, "seconds": 0.0, "loss": math.nan}
        self.checkpoint = settings.runs / f"{stage}.ckpt"
        if self.checkpoint.exists():
            self._load()

    def _start_from(self, bed: Path) -> None:
        """Take the weights of a finished bed; the optimizer begins anew."""
        for name, module in self.modules.items():
            (file,) = (bed / name).glob("*.safetensors")
            weights = load_file(file)
            # A tied weight is stored once, under the name that its module gives it first.
            stored = {module.state_dict()[key].data_ptr(): weights[key] for key in weights}
            module.load_state_dict(
                {key: stored[value.data_ptr()] for key, value in module.state_dict().items()}
            )

    def _load(self) -> None:
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for own, theirs in zip(self.parameters, saved["parameters"], strict=True):
                own.copy_(theirs)
            for own, theirs in zip(self.average, saved["average"], strict=True):
                own.copy_(theirs)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = saved["state"]
        print(f"{self.stage}: resumed at step {self.state['step']}", flush=True)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_suffix(".part")
        torch.save(
            {
                "parameters": [p.detach() for p in self.parameters],
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "state": self.state,
            },
            beside,
        )
        beside.replace(self.checkpoint)

    @property
    def progress(self) -> float:
        """The share of the run that is behind, by the further of two clocks."""
        by_steps = self.state["step"] / self.settings.num_steps
        return max(by_steps, self.state["seconds"] / 60 / self.settings.minutes)

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer, at the rate that the progress calls for."""
        step, settings = self.state["step"], self.settings
        decay = min(1.0, (1 - self.progress) / (1 - CONSTANT_SHARE))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / settings.warmup) * decay
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        kept = min(settings.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - kept)
        self.state["step"] = step + 1

    def train(self, loss_of: Loss, report_every: int = 100) -> dict[str, float]:
        """Train to the end, then put the moving average into the modules."""
        settings, losses = self.settings, []
        clock = saved_at = time.monotonic()
        for module in self.modules.values():
            module.train()
        while self.progress < 1:
            generator = step_generator(settings.device, self.stage, self.state["step"])
            with precision(settings):
                loss = loss_of(self.state["step"], generator)
            self.update(loss)
            losses.append(loss.detach())
            reporting = self.state["step"] % report_every == 0
            if reporting:
                self._note(losses)
            now = time.monotonic()
            self.state["seconds"] += now - clock
            clock = now
            if reporting or self.state["step"] == 1:
                self._report()
            if now - saved_at > settings.save_minutes * 60:
                self._note(losses)
                self.save()
                saved_at = now
        self._note(losses)
        self._report()
        self.save()
        self.use_average()
        return self.state

    def _note(self, losses: list[Tensor]) -> None:
        if losses:
            self.state["loss"] = torch.stack(losses).mean().item()
            losses.clear()
            if not math.isfinite(self.state["loss"]):
                raise FloatingPointError(f"{self.stage}: the loss is {self.state['loss']}")

    def _report(self) -> None:
        progress, seconds = self.progress, self.state["seconds"]
        left = seconds * (1 - progress) / max(progress, 1e-9)
        print(
            f"{self.stage} step {self.state['step']} {progress:6.1%} "
            f"loss {self.state['loss']:.5f} {seconds:.0f} s, {max(left, 0):.0f} s left",
            flush=True,
        )

    def use_average(self) -> None:
        """Put the moving average into the modules, and the modules to evaluation."""
        with torch.no_grad():
            for own, averaged in zip(self.parameters, self.average, strict=True):
                own.copy_(averaged)
        for module in self.modules.values():
            module.eval()
