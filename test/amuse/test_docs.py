"""The examples of docs/amuse.md."""
import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/amuse.md"
EXAMPLES = re.findall(r"^```python run-amuse\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=["AMUSE's classes", "flotilla.amuse"])
def test_an_example_runs_as_it_stands(user, example):
    wanted = re.findall(r"# -> (.*)", example)
    out, _ = user.run(example)
    assert wanted
    for each in wanted:
        assert each in out
