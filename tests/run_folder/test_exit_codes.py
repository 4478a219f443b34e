import errno
import signal

import pytest

from hf_evidenceflow.run_folder.exit_codes import run_recipe


def script(source, name="__main__"):
    """The `main` of a script of ours."""
    space = {"__name__": name}
    exec(source, space)
    return space["main"]


REFUSAL = "def main():\n    raise ValueError('`rows` must be at least 1, got 0.')"


@pytest.mark.parametrize("kind", ["ValueError", "RuntimeError"])
@pytest.mark.parametrize("name", ["__main__", "hf_evidenceflow.callbacks.memory_check"])
def test_a_refusal_is_one_line(name, kind):
    with pytest.raises(SystemExit) as ended:
        run_recipe(script(REFUSAL.replace("ValueError", kind), name))
    assert ended.value.code == "Error: `rows` must be at least 1, got 0."


def test_a_file_in_place_of_the_output_folder_is_an_error_with_what_to_do(tmp_path):
    path = tmp_path / "results"
    path.touch()
    with pytest.raises(SystemExit) as ended:
        run_recipe(path.mkdir)
    assert ended.value.code == (
        f"Error: {path}: File exists. A file stands where a folder is needed. Move it away, or give another path."
    )


def test_a_full_disk_says_that_what_was_saved_is_kept():
    def main():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as ended:
        run_recipe(main)
    assert ended.value.code.startswith("Error: No space left on device. Make room on the disk, and run the same")


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


def test_sigterm_ends_any_recipe_with_its_code_and_how_to_go_on(capsys):
    def main():
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        run_recipe(main, interrupted="Interrupted. Run it again.")
    assert ended.value.code == 143 and capsys.readouterr().err == "\nInterrupted. Run it again.\n"


def test_an_interrupted_recipe_says_how_to_go_on(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_recipe(main, interrupted="Interrupted. Run it again.")
    assert ended.value.code == 130 and capsys.readouterr().err == "\nInterrupted. Run it again.\n"
