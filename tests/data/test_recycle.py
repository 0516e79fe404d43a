import torch

from fmct.data.recycle import Recycler


def test_memory_comes_back_only_when_no_view_is_left() -> None:
    recycler = Recycler()
    first = recycler.take((2, 3, 4))
    address = first.data_ptr()
    part = first[1]
    del first
    assert recycler.take((24,)).data_ptr() != address  # a view still holds it
    del part
    again = recycler.take((4, 6))
    assert again.data_ptr() == address
    assert again.shape == (4, 6)


def test_memory_that_autograd_holds_is_not_given_out() -> None:
    recycler = Recycler()
    weight = torch.ones(8, requires_grad=True)
    image = recycler.take((8,)).fill_(3.0)
    loss = (image * weight).sum()
    del image
    recycler.take((8,)).fill_(0.0)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0] * 8
