"""The help of the explorers."""

import ipywidgets as widgets


def help_text(lines: dict[str, str]) -> widgets.HTML:
    """A line about each control, below a "?" that shows and hides them."""
    items = "".join(f"<li><b>{name}</b>: {line}</li>" for name, line in lines.items())
    return widgets.HTML(f"<details open><summary>?</summary><ul>{items}</ul></details>")
