"""How the site is built: ``make docs``, or ``sphinx-build -W --keep-going -b html docs docs/_build``."""

import sys
from pathlib import Path

from protloom import __version__

sys.path.insert(0, str(Path(__file__).with_name("extensions")))

project = "Protloom"
author = "The Protloom developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "protloom_pages"]
exclude_patterns = ["_build", "extensions"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes alone: quotation marks may be part of what is typed

# the order of the source is the order in which a module is best read
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
# attributes are described where the class is, not once more as members
napoleon_use_ivar = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"Protloom {release}"
html_copy_source = False
