"""The notebooks are the tutorials; docs/checks runs them."""

import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from tutorial_notebooks import differing, notebook_of

PAGE = """# A page

As a notebook: [a-page.ipynb](../notebooks/a-page.ipynb)

Before.

```python
print(1.5)
```

```output
1.5
```

```console
$ attentune train data \\
      --output here
accuracy  ...
$ attentune serve models &
```

```bash
attentune serve elsewhere
```

See [another](another.md) and [a guide](../guides/own-data.md).
"""


def test_every_tutorial_has_the_notebook_that_it_makes() -> None:
    assert differing() == [], "run python scripts/tutorial_notebooks.py"


def test_a_page_becomes_cells() -> None:
    book = nbformat.reads(notebook_of(PAGE), as_version=4)
    prose, code, train, serve, rest = book.cells
    assert prose.source == "# A page\n\nBefore."
    assert (code.source, code.outputs[0].text) == ("print(1.5)", "1.5\n")
    assert train.source == "%%bash\nattentune train data \\\n      --output here"
    assert train.outputs[0].text == "accuracy  ...\n"
    assert (serve.source, serve.outputs) == ("%%bash --bg\nattentune serve models", [])
    assert "```bash" in rest.source
    assert "[another](another.ipynb) and [a guide](../guides/own-data.md)" in rest.source


def test_a_notebook_is_the_same_whenever_it_is_made() -> None:
    assert notebook_of(PAGE) == notebook_of(PAGE)
