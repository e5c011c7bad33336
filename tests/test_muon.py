"""Muon: the update of torch's own, in float32, and orthogonal."""

import pytest
import torch

from gmai_lib.model.muon import Muon, orthogonalise

SHAPES = [(16, 16), (16, 16), (8, 24), (24, 8)]


def test_same_steps_as_torch_but_for_its_bf16():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    moved = max((a - p).abs().max() for a, p in zip(ours, start, strict=True))
    apart = max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True))
    assert apart < 0.05 * moved


def test_update_has_nearly_equal_singular_values_and_the_same_vectors():
    matrices = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0))
    updates = orthogonalise(matrices)
    values = torch.linalg.svdvals(updates)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ updates @ v.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    assert torch.allclose(orthogonalise(matrices.mT), updates.mT, atol=1e-5)


def test_only_matrices_with_a_gradient_move():
    moved, still = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = Muon([moved, still], lr=0.1)
    moved.grad = torch.eye(4)
    optimizer.step()
    assert not torch.equal(moved, torch.ones(4, 4)) and torch.equal(still, torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"moves matrices, not a \(4,\) parameter"):
        Muon([torch.nn.Parameter(torch.ones(4))])
