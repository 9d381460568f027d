"""The example of docs/amuse.md."""
import pathlib
import re

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/amuse.md"


def test_the_example_runs_as_it_stands(user):
    example = re.search(r"^```python run-amuse\n(.*?)^```$", PAGE.read_text(), re.M | re.S)[1]
    wanted = re.findall(r"# -> (.*)", example)
    out, _ = user.run(example)
    assert wanted
    for each in wanted:
        assert each in out
