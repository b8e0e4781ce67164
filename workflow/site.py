"""Hooks for mkdocs: the repository's pages at their own paths, notebooks as pages, equations as MathML."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff", "docs/**/*.*", "figures/*.svg",
    "figures/readme-*.png", "notebooks/*.ipynb", "presets/**/*.yaml", "workflow/**/*.yaml",
    "tests/README.md", "benchmarks/NOTES.md", "gmp_utils/**/README.md",
    "gmp_utils/data/corpora/emodb/03a01Wa.flac",  # which notebook 01 links to
)  # fmt: skip
EQUATION = re.compile(r'class="arithmatex">\\([(\[])(.+?)\\[)\]]<', re.DOTALL)


def on_files(files: Files, config) -> Files:
    """Replace the files of docs/ by those of the repository, so that links work here and there."""
    pages = [file for file in files if file.src_dir != config.docs_dir]  # the theme's
    for path in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        name = path.relative_to(ROOT)
        contents = {name: path.read_bytes()}
        if path.suffix == ".ipynb":
            text, resources = MarkdownExporter().from_filename(str(path), {"unique_key": path.stem})
            images = {name.parent / image: png for image, png in resources["outputs"].items()}
            contents = {name.with_suffix(".md"): text, **images}
        for place, content in contents.items():
            pages.append(File.generated(config, place.as_posix(), content=content))
    return Files(pages)


def on_page_markdown(markdown: str, **_) -> str:
    """Point links to notebooks at their pages."""
    return markdown.replace(".ipynb)", ".md)")


def on_page_content(content: str, **_) -> str:
    """Convert equations to MathML, which browsers render without scripts."""

    def mathml(match: re.Match) -> str:
        display = "block" if match[1] == "[" else "inline"
        drawn = convert(html.unescape(match[2]), display=display)
        if "\\" in drawn:
            raise PluginError(f"latex2mathml lacks a command of {match[2]}; use another one.")
        return f'class="arithmatex">{drawn}<'

    return EQUATION.sub(mathml, content)
