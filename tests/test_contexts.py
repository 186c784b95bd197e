"""Context managers inside a forward: autocast is refused by name in certificates, a missing gradient is said."""

import pytest
import torch
from heard import messages_into
from torch import Tensor, nn

from robustbench_rkhs import UserError, certify, evaluate

X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast of a device that may be missing": lambda: torch.autocast("cuda"),
    "autocast of an older name": lambda: torch.cuda.amp.autocast(),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast switched off": lambda: torch.autocast("cpu", enabled=False),
    "enable_grad": torch.enable_grad,
}


class Inside(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.first, self.last = name, nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with CONTEXTS[self.name]():
            return self.last(torch.relu(self.first(x.flatten(1))))


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Inside(name).eval()


Y = model("enable_grad")(X).argmax(1)
RADII = certify(model("enable_grad"), X, Y)


@pytest.mark.filterwarnings("ignore:User provided device_type:UserWarning", "ignore:.*autocast.*:FutureWarning")
@pytest.mark.parametrize("name", [name for name in CONTEXTS if name.startswith("autocast") and "off" not in name])
def test_autocast_in_a_forward_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=r"margin, liplt.*: its forward runs under torch\.autocast, which rounds"):
        certify(model(name), X, Y)
    assert torch.autocast("cpu", torch.bfloat16)._enabled  # the class is as it was


@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "autocast switched off", "enable_grad"])
def test_gradients_switched_off_change_no_proof_but_are_said(name: str) -> None:
    said: list[str] = []
    assert torch.equal(certify(model(name), X, Y), RADII)
    evaluate(
        model(name), (X, Y), eps=0.01, effort="quick", diagnostics=False, certificates=("margin",), on_event=messages_into(said)
    )
    lines = [line for line in said if "forward runs under" in line]
    assert (name in ("no_grad", "inference_mode")) is bool(lines)
    assert all(f"torch.{name}: attacks see no gradient" in line and "certificates are not affected" in line for line in lines)
