"""Tensors are told from the example by all that a launch was prepared for."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest

from podrt.tensors import likeness

torch = pytest.importorskip("torch")

Q, CACHE = (5, 8, 64), (4, 16, 2, 64)


def example(rows=5):
    q = torch.zeros(rows, *Q[1:], dtype=torch.float16)
    caches = torch.zeros(2, *CACHE, dtype=torch.float16)
    return [q, caches[0], caches[1], torch.zeros_like(q)]


@pytest.fixture(params=["guard", "attributes"])
def addresses(request, monkeypatch):
    """Both ways to compare: PyTorch's own, and attribute by attribute."""
    if request.param == "attributes":
        monkeypatch.setattr(likeness, "_torch_guard", lambda *tensors: None)
    else:
        assert likeness._torch_guard(*example()) is not None
    return likeness.addresses_if_like(*example())


@pytest.mark.parametrize("rows", [0, 1, 5, 9])
def test_others_like_them_tell_their_addresses_and_rows(addresses, rows):
    given = example(rows)
    assert addresses(*given) == (*(tensor.data_ptr() for tensor in given), rows)


def test_values_and_outputs_have_a_width_of_their_own(monkeypatch):
    for guard in (likeness._torch_guard, lambda *tensors: None):
        monkeypatch.setattr(likeness, "_torch_guard", guard)
        given = [
            tensor[..., :40].contiguous() if at > 1 else tensor
            for at, tensor in enumerate(example())
        ]
        addresses = likeness.addresses_if_like(*given)
        assert addresses(*given) == (*(tensor.data_ptr() for tensor in given), 5)
        assert addresses(*given[:3], given[3][:4]) is None
        assert addresses(*example()) is None


class Mine(torch.Tensor):
    pass


UNLIKE = {
    "type": lambda tensor: tensor.as_subclass(Mine),
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "element type": lambda tensor: tensor.to(torch.bfloat16),
    "element type of another size": lambda tensor: tensor.float(),
    "dimensions": lambda tensor: tensor[None],
    "inner stride": lambda tensor: torch.cat((tensor, tensor), dim=-1)[..., ::2],
    "outer stride": lambda tensor: torch.cat((tensor, tensor), dim=1)[:, : tensor.shape[1]],
    "heads": lambda tensor: tensor[:, :-1],
    "head_dim": lambda tensor: tensor[..., :-8],
    "broadcast": lambda tensor: tensor[:1].expand(tensor.shape),
    "no tensor": lambda tensor: tensor.numpy(),
}


@pytest.mark.parametrize(("at", "how"), itertools.product(range(4), UNLIKE))
def test_others_are_unlike(addresses, at, how):
    given = example()
    given[at] = UNLIKE[how](given[at])
    assert addresses(*given) is None


@pytest.mark.parametrize("at", range(4))
def test_another_device_is_unlike(at):
    """As PyTorch sees it; by attributes a device is a number, which only GPUs have."""
    addresses, given = likeness.addresses_if_like(*example()), example()
    given[at] = given[at].to("meta")
    assert addresses(*given) is None


@pytest.mark.parametrize("at", [1, 2])
def test_caches_have_the_length_of_the_example(addresses, at):
    given = example()
    given[at] = given[at][:3]
    assert addresses(*given) is None


@pytest.mark.parametrize("at", [0, 3])
def test_q_and_out_have_as_many_rows(addresses, at):
    given = example()
    given[at] = given[at][:4]
    assert addresses(*given) is None


def test_tensors_that_are_changed_in_place_are_looked_at_again(addresses):
    given = example()
    assert addresses(*given) is not None
    given[1].resize_(2, 16, 2, 64)
    assert addresses(*given) is None


def test_the_example_is_not_kept():
    given = example()
    alive = [weakref.ref(tensor) for tensor in given]
    told = likeness.addresses_if_like(*given)
    del given
    gc.collect()
    assert told is not None and [reference() for reference in alive] == [None] * 4
