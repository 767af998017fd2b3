"""How the documentation is built: `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# What the pages' cells run with. They fetch nothing: from no hub, nor through pip, as seepage's own weights come.
# A page is no terminal, whatever the kernel says of colours.
os.environ.update(
    HF_HUB_OFFLINE="1",
    PIP_NO_INDEX="1",
    PYTHONSTARTUP=str(Path(__file__).parent / "_ext" / "kernel.py"),
    PYTHONWARNINGS="ignore:IProgress not found",
    TTY_COMPATIBLE="0",
)

from seepage import __version__

project = "seepage"
author = "The seepage developers"
copyright = "The seepage developers"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands", "components", "records", "docstrings"]
exclude_patterns = ["_build", "jupyter_execute"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_render_markdown_format = "myst"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "seepage"
html_static_path = ["_static"]
html_css_files = ["seepage.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
