"""Converts notebooks to Markdown pages with outputs, and images as separate files."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

# Skip outputs that change between runs, such as progress lines.
_TRANSIENT = ("optimsyn", "transient")

_TEMPLATE = """\
{%- extends 'markdown/index.md.j2' -%}
{%- block in_prompt -%}{%- endblock in_prompt -%}
{%- block input %}

{% if 'parameters' in cell.metadata.get('tags', []) -%}
<p class="nb-label">parameters</p>

{% endif -%}
````python
{{ cell.source }}
````
{% endblock input -%}
{%- block stream %}

````text {.nb-text}
{{ output.text | strip_ansi | trim }}
````
{% endblock stream -%}
{%- block execute_result -%}{%- block display_data -%}
{{ super() }}
{%- endblock display_data -%}{%- endblock execute_result -%}
{%- block data_text %}

````text {.nb-text}
{{ output.data['text/plain'] | strip_ansi }}
````
{% endblock data_text -%}
{%- block data_html %}

<div class="nb-html">{{ output.data['text/html'] | one_block }}</div>

{% endblock data_html -%}
{%- block data_png %}

![{{ output.metadata.get('alt', 'A figure that this cell draws') }}]\
({{ output.metadata.filenames['image/png'] | path2url }}){ .nb-figure }

{% endblock data_png -%}
{%- block error %}

````text {.nb-text}
{{ output.ename }}: {{ output.evalue }}
````
{% endblock error -%}
"""


def one_block(html: str) -> str:
    """HTML without blank lines, so that Markdown treats it as one block."""
    return re.sub(r"\n\s*\n", "\n", html.strip())


class _Exporter(MarkdownExporter):
    """nbconvert's Markdown exporter with the template above; prefers HTML to plain text."""

    def __init__(self) -> None:
        config = Config()
        config.NbConvertBase.display_data_priority = ["image/png", "text/html", "text/markdown", "text/plain"]
        super().__init__(config=config, raw_template=_TEMPLATE)
        self.register_filter("one_block", one_block)


def notebook_title(notebook: nbformat.NotebookNode, name: str) -> str:
    """The first heading of a notebook."""
    for cell in notebook.cells:
        heading = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            return str(heading[1]).strip()
    return name


def notebook_pages(folder: Path) -> dict[str, str | bytes]:
    """Every notebook of a folder as `notebooks/<name>.md`, its images, itself, and an index of all.

    Args:
        folder: Holds the `.ipynb` files.

    Returns:
        Path in the site to content.
    """
    exporter = _Exporter()
    pages: dict[str, str | bytes] = {}
    lines = []
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if not _is_transient(output)]
        body, resources = exporter.from_notebook_node(
            notebook, {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        )
        title = notebook_title(notebook, path.stem)
        note = f'<p class="nb-source">This page is the notebook <a href="{path.name}" download>{path.name}</a>'
        note += " with its kept outputs.</p>"
        body = re.sub(r"\n{3,}", "\n\n", body).strip()
        # The note goes under the heading, where the page has one.
        head, newline, rest = body.partition("\n")
        page = f"{head}\n\n{note}\n{newline}{rest}" if head.startswith("# ") else f"# {title}\n\n{note}\n\n{body}"
        pages[f"notebooks/{path.stem}.md"] = page + "\n"
        pages[f"notebooks/{path.name}"] = path.read_bytes()
        for name, data in resources["outputs"].items():
            pages[f"notebooks/{Path(name).as_posix()}"] = data
        lines.append(f"- [{title}]({path.stem}.md): {_summary(notebook)}")
    pages["notebooks/index.md"] = _INDEX + "\n".join(lines) + "\n"
    return pages


def _is_transient(output: nbformat.NotebookNode) -> bool:
    metadata = output.get("metadata", {})
    return bool(metadata.get(_TRANSIENT[0], {}).get(_TRANSIENT[1], False))


def _summary(notebook: nbformat.NotebookNode) -> str:
    """The first sentence under the first heading, without its links."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        prose = [
            block
            for block in re.split(r"\n\s*\n", cell.source)
            if block.strip() and not re.match(r"\s*[#|>\-*]", block)
        ]
        if prose:
            text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(prose[0].split()))
            return re.split(r"(?<=[.!?])\s", text)[0]
    return ""


_INDEX = """\
# The notebooks

optimsyn lives in notebooks. The numbered ones are the stages of a run: step through them in JupyterLab
(`.venv/bin/jupyter lab notebooks`), or let `optimsyn run` execute the very same files. Every page below shows the
outputs of a real run on the embedded model, and links to the notebook itself.

"""
