import pytest

from hf_evidenceflow.run_folder.exit_codes import run_recipe


def script(source, name="__main__"):
    """The `main` of a script of ours."""
    space = {"__name__": name}
    exec(source, space)
    return space["main"]


REFUSAL = "def main():\n    raise ValueError('`rows` must be at least 1, got 0.')"


@pytest.mark.parametrize("name", ["__main__", "hf_evidenceflow.callbacks.memory_check"])
def test_a_refusal_is_one_line(name):
    with pytest.raises(SystemExit) as ended:
        run_recipe(script(REFUSAL, name))
    assert ended.value.code == "Error: `rows` must be at least 1, got 0."


@pytest.mark.parametrize(
    "main",
    [
        script("def main():\n    int('a')"),
        script("def main():\n    one, two = [1]"),
        script(REFUSAL, "another_library"),
    ],
    ids=["of a function of Python", "of Python itself", "of another library"],
)
def test_other_errors_of_values_keep_their_traceback(main):
    with pytest.raises(ValueError):
        run_recipe(main)


def test_wrong_arguments_keep_their_exit_code():
    from hf_evidenceflow.recipes.command_line.arguments import ArgumentsError

    def main():
        raise ArgumentsError("no such option")

    with pytest.raises(ArgumentsError) as ended:
        run_recipe(main)
    assert ended.value.code == 2


def test_an_interrupted_recipe_says_how_to_go_on(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_recipe(main, interrupted="Interrupted. Run it again.")
    assert ended.value.code == 130 and capsys.readouterr().err == "\nInterrupted. Run it again.\n"
