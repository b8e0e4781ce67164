"""README, the pages of docs/, and the site: their commands, links and lengths."""

import itertools
import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, VARIABLES, make, python, succeeded

from gmp_utils import __main__
from gmp_utils.runs.notebook import check_parameters

PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
assert len(TEXTS) == 16


def blocks(page):
    """Fenced blocks of a page: language (empty for commands) and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)


def commands():
    """Commands of all pages, in blocks and in backticks, without comments."""
    for page, text in TEXTS.items():
        for kind, block in blocks(page):
            if not kind and not block.startswith("|"):  # not a printed table
                yield from (line.split("#")[0].strip() for line in block.strip().splitlines())
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        yield from (
            " ".join(c.split()) for c in re.findall(r"`((?:make|\.venv/\S+)\s[^`]+)`", prose)
        )


COMMANDS = sorted(set(commands()))
PLANNED = [
    line
    for line in COMMANDS
    if re.match("make (run .*=|(experiment|plan|report) NAME=)", line)
    and not re.search("…|my/recordings.csv", line)
]
CHECKED = [line for line in COMMANDS if line not in PLANNED]
assert len(PLANNED) >= 15 and len(CHECKED) >= 20


@pytest.mark.parametrize("line", PLANNED)
def test_runs_of_the_pages_are_planned(tmp_path, line):
    """They take too long, or need corpora and weights, to be run in a test, so they are only planned."""
    settings = dict(part.split("=", 1) for part in shlex.split(line)[2:])
    if "CORPUS_DIR" in settings:
        settings["CORPUS_DIR"] = str(tmp_path)
    if settings.get("ENCODER", "").startswith("runs/"):
        settings["ENCODER"] = "embedded"
    if settings.get("NAME", "").endswith(".yaml"):
        (own,) = [text for kind, text in blocks("experiments.md") if kind == "yaml"]
        settings["NAME"] = str(tmp_path / settings["NAME"])
        Path(settings["NAME"]).write_text(own)
    settings["RUN"] = str(tmp_path / "run")
    plan = succeeded(make("plan", *(f"{name}={value}" for name, value in settings.items())))
    personal = "papt" in settings.get("RECIPE", "") or settings.get("NAME") == "personalize"
    assert ("personalize" if personal else "finetune") in plan
    if "FOLDS" in settings and "NAME" not in settings:
        initial_models = settings.get("FINETUNE_FROM", "retrained").split()
        runs = len(settings["FOLDS"].split()) * len(initial_models)
        assert f": 0 of {runs} runs done" in plan


@pytest.mark.parametrize("line", CHECKED)
def test_other_commands_exist(line):
    """Their targets, variables, notebooks, parameters, scripts and options. Other tests run most of them."""
    if line.startswith("git clone "):
        return
    program, *arguments = shlex.split(re.sub("[<>]", "", line))
    if program == "make":
        targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
        assert arguments[0] in targets.split()
        assert {argument.split("=")[0] for argument in arguments[1:]} <= VARIABLES
        return
    assert (ROOT / program).is_file()
    if program.endswith("/papermill"):
        pairs = itertools.pairwise(arguments)  # a run's parameters are not in the checkout
        presets = [x for flag, x in pairs if flag == "-f" and not x.startswith("runs/")]
        given = [arguments[n + 1 : n + 3] for n, flag in enumerate(arguments) if flag == "-p"]
        parameters = {name: yaml.safe_load(value) for name, value in given}
        for preset in presets:
            parameters = yaml.safe_load((ROOT / preset).read_text()) | parameters
        assert (ROOT / arguments[0]).is_file()
        assert check_parameters(Path(arguments[0]).stem, parameters) == parameters
    elif arguments[:2] == ["-m", "gmp_utils"] and "--help" not in arguments:
        options = [argument.removeprefix("my/") for argument in arguments[2:]]  # no such folder
        assert __main__._parser().parse_args(options)
    elif arguments[0].endswith(".py"):
        script = (ROOT / arguments[0]).read_text()
        options = [argument for argument in arguments if argument.startswith("--")]
        assert all(f'"{option}"' in script for option in options)


def anchors(text):
    """Anchors of a page's headings on GitHub."""
    headings = re.findall(r"^#+ (.+)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


OTHER_PAGES = [ROOT / name for name in (
    "CONTRIBUTING.md", "tests/README.md", "benchmarks/NOTES.md", "gmp_utils/models/embedded/README.md",
)]  # fmt: skip


def test_links_lead_somewhere():
    pages = [*PAGES.values(), *OTHER_PAGES]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\((\S+?)\)", page.read_text())
    ]
    assert len(links) > 80
    for page, link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and path.is_relative_to(ROOT), (page, link)
        assert not anchor or anchor in anchors(path.read_text()), (page, link)


def test_the_pages_are_short_and_linked():
    lengths = {name: len(text.splitlines()) for name, text in TEXTS.items()}
    assert all(f"(docs/{name}" in TEXTS["README.md"] for name in PAGES if name != "README.md")
    assert {name for name, lines in lengths.items() if lines > 150} <= {"parameters.md"}


def test_the_page_of_parameters_is_up_to_date():
    """Otherwise, run `python workflow/parameters_page.py`."""
    page = runpy.run_path(str(ROOT / "workflow" / "parameters_page.py"))["page"]()
    assert TEXTS["parameters.md"] == page


@pytest.mark.skipif(not find_spec("latex2mathml"), reason="the extra docs is not installed")
def test_the_site_is_built_and_needs_no_network(tmp_path):
    done = python("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site")
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {path.name: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "method.html", "06_finetune.html"} <= pages.keys()
    assert "<math" in pages["method.html"]
    for page in pages.values():
        assert not re.search(
            r"<(script|img|iframe)[^>]+src=\"?https?:|<link[^>]+stylesheet[^>]+https?:", page
        )
