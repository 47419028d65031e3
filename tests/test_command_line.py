"""What the command line says to a slip: one line that names it, and exit status 2."""

import pytest

from dplearn import __main__ as top
from dplearn.zoo import __main__ as zoo


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_commands_are_listed(arguments, capsys):
    assert top.main(arguments) == 0
    assert "python -m dplearn.zoo list" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "error: python -m dplearn nonsense: it takes no arguments"),
        (["zoo", "list"], "expected python -m dplearn.zoo list"),
        (["experiments", "run", "t5"], "expected python -m dplearn.experiments run t5"),
    ],
)
def test_arguments_of_other_commands_are_no_help(arguments, message, capsys):
    assert top.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


@pytest.mark.parametrize("command", ["card", "check"])
def test_an_unknown_backbone_is_one_line(command, capsys):
    assert zoo.main([command, "t5-maxi"]) == 2
    assert "error: name='t5-maxi' is unknown, expected one of ['clip-mini'" in capsys.readouterr().err
