import torch

from fmct.losses.foreground_bank import ForegroundBank


def unit(*values: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(values, dtype=torch.float32), dim=0)


def test_slots_fill_in_turn_and_then_move_slowly():
    bank = ForegroundBank(2, size=2, momentum=0.75)
    bank.observe([unit(1, 0)])
    assert len(bank.prototypes()) == 0  # in force only after the update
    bank.apply()
    assert bank.prototypes().tolist() == [[1, 0]]
    bank.observe([unit(0, 1), unit(0, 1)])
    bank.apply()
    torch.testing.assert_close(bank.prototypes(), torch.stack([unit(0.75, 0.25), unit(0, 1)]))
    bank.apply()
    assert bank.seen == 3


def test_the_state_comes_back():
    bank, again = ForegroundBank(2, size=3), ForegroundBank(2, size=3)
    bank.observe([unit(1, 2)])
    bank.apply()
    again.observe([unit(5, 1)])
    again.load(bank.state())
    again.apply()
    torch.testing.assert_close(again.prototypes(), bank.prototypes())
    bank.observe([unit(1, 1)])
    bank.apply()
    assert len(again.prototypes()) == 1  # a state is a copy
