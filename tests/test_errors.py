import pytest

from fmct.errors import DataError, TrainingStopped, told_to_the_user


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("no scan there."), 2), (TrainingStopped("no time.", exit_code=75), 75)]
)
def test_a_users_mistake_is_told_with_its_exit_code(error, code, capsys):
    @told_to_the_user
    def main() -> int:
        raise error

    assert main() == code
    assert capsys.readouterr().err == f"{error}\n"


def test_a_bug_is_not_told_as_a_mistake():
    @told_to_the_user
    def main(value: int) -> int:
        return 1 // value

    assert main(1) == 1
    with pytest.raises(ZeroDivisionError):
        main(0)
