"""`fedrag evaluate`: a report that could not be saved is known before anything is measured."""

import pytest
from typer.testing import CliRunner

from fedrag import Example
from fedrag.cli import app
from fedrag.errors import InputError
from fedrag.evaluation import Record, summarize


@pytest.mark.parametrize("place", ["folder", "file/report.json"])
def test_a_place_that_cannot_be_written_is_named_first(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    # neither the system nor the questions are there: whoever looks at them before the place says so
    done = CliRunner().invoke(app, ["evaluate", "absent", "absent.jsonl", "--save", str(tmp_path / place)])
    assert done.exit_code == 1
    assert "cannot be written" in str(done.exception)
    with pytest.raises(InputError, match="cannot be written"):
        summarize([Record(Example("q", ["a"]), {"f1": 1.0})]).save(tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
