"""Measure what `flops.memory_of` computes: the bytes of all tensors alive at the worst moment.

    sizes = measured(lambda: model(**batch).loss.backward(), model, optimizer, batch.values())

Tensors are counted, not the process's pages: two runs give the same number, on any device. What
an allocator rounds up or a library hides from torch is not seen.

References: https://github.com/pytorch/pytorch/blob/main/torch/distributed/_tools/mem_tracker.py
"""

from collections.abc import Callable, Iterable

import torch
from torch.distributed._tools.mem_tracker import MemTracker


class _Tracker(MemTracker):
    """Without statistics per module, which refuse frozen weights and a second forward pass."""

    def _pre_fw_hook(self, *_):
        """Called by torch's tracker; nothing to note."""

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook


def measured(
    run: Callable[[], object], model, optimizer=None, inputs: Iterable[torch.Tensor] = ()
) -> dict[str, int]:
    """Return bytes of "weights", "gradients", "optimizer", "activations" at the peak of `run()`.

    Call it once before, so that gradients and moments exist already, as in any step but the first.
    `optimizer` may hold float32 copies of the weights; its state includes them. `inputs` count as
    activations. A peak is one moment: the four add up to it.
    """
    own = {id(parameter) for parameter in model.parameters()}
    state = _state(optimizer, own) if optimizer is not None else []
    tracker = _Tracker()
    tracker.track_external(model, *inputs, *state)
    with tracker:
        run()
    (device,) = {parameter.device for parameter in model.parameters()}
    peak = tracker.get_tracker_snapshot("peak")[device]
    peak = {getattr(kind, "value", kind): size for kind, size in peak.items()}
    sizes = {"weights": peak["Parameter"] + peak["Buffer"], "gradients": peak["Gradient"]}
    sizes["optimizer"] = sum(tensor.nbytes for tensor in state)
    return sizes | {"activations": peak["Total"] - sum(sizes.values())}


def _state(optimizer: torch.optim.Optimizer, own: set[int]) -> list[torch.Tensor]:
    """The optimizer's tensors: moments, and copies of weights that are not the model's own."""
    copies = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
    moments = [v for state in optimizer.state.values() for v in state.values()]
    return copies + [tensor for tensor in moments if isinstance(tensor, torch.Tensor)]
