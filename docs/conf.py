"""Configuration of the documentation site; `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path

from docutils import nodes
from sphinx.domains.python import PyObject

import clipdata_jax

if typing.TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
typing.GENERATING_DOCUMENTATION = True  # type: ignore[attr-defined]  # jaxtyping then prints Float[Array, 'b d']

project = "clipdata_jax"
author = "The clipdata_jax authors"
project_copyright = "2026, the clipdata_jax authors"
version = release = clipdata_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
smartquotes = False
highlight_language = "none"
default_role = "literal"  # docstrings mark code with single backticks
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"DTypeLike": "DTypeLike"}
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 70
add_module_names = False
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "clipdata_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "extra_footer": "Apache-2.0",
    "footer_content_items": ["copyright", "extra-footer"],
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
}

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note|References):")


def setup(app: Sphinx) -> None:
    """Registers what Sphinx calls while it builds."""
    app.connect("builder-inited", _write_command_pages)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=1)
    app.connect("autodoc-skip-member", _skip_field)
    app.connect("doctree-read", _set_dashes)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"


def _write_command_pages(app: Sphinx) -> None:
    sys.path.insert(0, str(HERE))
    import command_pages

    command_pages.write(HERE / "commands")


def _set_dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Sets the dash after a parameter's name, which smart quotes would set, and make one of every `--flag`."""
    for text in [node for node in doctree.findall(nodes.Text) if node == " -- "]:
        text.parent.replace(text, nodes.Text(" – "))


def _skip_field(app: object, what: str, name: str, of: object, skip: bool, options: object) -> bool | None:
    """Skips what NamedTuple adds: its class's docstring says more."""
    made = name == "__new__" or (getattr(of, "__doc__", None) or "").startswith("Alias for field")
    return True if made else None


def _as_restructured_text(app: object, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Makes literal blocks of indented equations and escapes what reStructuredText would read as markup."""
    made: list[str] = []
    in_section = in_block = False
    for line in lines:
        indented, blank = line.startswith("    "), not line.strip()
        if not blank and not line.startswith(" "):
            in_section = bool(_SECTION.fullmatch(line.strip()))
        if indented and not in_section and not in_block and (not made or not made[-1].strip()):
            made += ["::", ""]
            in_block = True
        elif not blank and not indented:
            in_block = False
        made.append(line if in_block or blank else _escaped(line))
    lines[:] = made


def _escaped(line: str) -> str:
    """The line with `|`, `*` and a word's last `_` as they are, outside backticks and doctests."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = line.split("`")
    parts[::2] = [re.sub(r"([|*])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
    return "`".join(parts)
