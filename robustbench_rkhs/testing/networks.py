"""Conformance checks of a network node: it builds models that map images to logits, reproducibly for a given seed."""

import torch
from torch import nn

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.testing.must import must


def check_network(network: NetworkNode, shape: tuple[int, ...] = (1, 8, 8), classes: int = 4) -> nn.Module:
    """All checks of a network node on images of `shape`; returns the model it built."""
    model = _built(network, shape, classes)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    logits = model.eval()(x)
    must(logits.shape == (3, classes), f"expected logits (3, {classes}), found {tuple(logits.shape)}")
    must(logits.isfinite().all() and logits.dtype == torch.float32, "logits must be finite float32")
    alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-4, msg="an image's logits must not depend on its batch")
    twin = _built(network, shape, classes).eval()
    must(torch.equal(twin(x), logits), "the same seed must build the same network")
    twin.load_state_dict(model.state_dict())
    model.train()
    model(x).square().sum().backward()
    must(all(one.grad is None or bool(one.grad.isfinite().all()) for one in model.parameters()), "gradients must be finite")
    must(any(one.grad is not None for one in model.parameters()), "a gradient must reach some parameter")
    return model.eval()


def _built(network: NetworkNode, shape: tuple[int, ...], classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network.build(shape, classes)
