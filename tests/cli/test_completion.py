"""What a shell asks the command when somebody presses the tab key."""

import os
import subprocess
import sys

import pytest

RUN = "import sys; sys.argv[0] = 'fedrag'; from fedrag.cli import main; main()"


def completed(words, shell="bash"):
    asked = {
        "bash": {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": words},
    }
    env = {**os.environ, "_FEDRAG_COMPLETE": f"complete_{shell}", **asked[shell]}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", RUN], env=env, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [("fedrag dif", ["diff"]), ("fedrag ex", ["export"]), ("fedrag export --dt", ["--dtype"])],
)
def test_a_subcommand_and_its_options_are_completed(words, found):
    assert completed(words).split() == found


def test_zsh_gets_the_descriptions_too():
    assert "diff" in completed("fedrag dif", "zsh")


def test_where_a_path_goes_the_shell_completes_files():
    assert completed("fedrag ask fol").split() == []
    env = {**os.environ, "_FEDRAG_COMPLETE": "source_bash"}
    script = subprocess.run([sys.executable, "-c", RUN], env=env, capture_output=True, text=True).stdout
    assert "complete -o default -F" in script
