"""A system with a damaged file: commands say so in one line."""

import pytest
from typer.testing import CliRunner

from fedrag.cli import app
from fedrag.durable import current
from fedrag.errors import FedRAGError
from systems import tiny_system


@pytest.mark.parametrize("command", ["ask {} hello", "diff {0} {0}"])
@pytest.mark.parametrize(
    "name",
    ["encoder/model.safetensors", "generator/model.safetensors", "generator/config.json", "generator/tokenizer.json"],
)
def test_a_cut_file_is_one_line(tmp_path, name, command):
    tiny_system().save(tmp_path / "rag")
    path = current(tmp_path / "rag") / name
    path.write_bytes(path.read_bytes()[:100])
    done = CliRunner().invoke(app, command.format(tmp_path / "rag").split())
    assert done.exit_code == 1
    assert isinstance(done.exception, FedRAGError), repr(done.exception)
    assert "\n" not in str(done.exception)
