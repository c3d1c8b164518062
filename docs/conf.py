"""How the site is built: `make docs` runs every block of it first. Nothing is fetched, neither to build nor to read."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "attentune"
author = "The attentune authors"
copyright = f"2026, {author}"
release = version = installed("attentune")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "endpoints",
    "mathml",
    "options",
    "recipes",
]
exclude_patterns = ["_build", "checks", "_ext", "notebooks"]  # notebooks: the tutorials again, to download
nitpicky = True
# Tables that benchmarks print begin below a heading that is not theirs.
suppress_warnings = ["myst.header"]
# Types of other packages are named in signatures; their documentation is not fetched to link to it.
nitpick_ignore_regex = [(r"py:.*", r"(?!attentune\b).*")]

autodoc_default_options = {"exclude-members": "__init__, __new__"}
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Pages and notebooks are run by docs/checks; the site shows what they hold.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"attentune {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["attentune.css"]
html_show_sphinx = False
copybutton_prompt_text = "$ "
pygments_style = "friendly"
pygments_dark_style = "monokai"


def hand_out(app: Sphinx, name: str, source: list[str]) -> None:
    """Notebooks are files to download here; in the repository they are links."""
    source[0] = source[0].replace("](../notebooks/", "](path:../notebooks/")


def setup(app: Sphinx) -> None:
    """What python blocks print is shown in ```output blocks, as plain text."""
    app.add_lexer("output", TextLexer)
    app.connect("source-read", hand_out)
