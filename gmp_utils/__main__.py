"""Execute runs and experiments, report their progress and results, and recognize emotions in recordings."""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path

from gmp_utils import GmpError

EXAMPLE_CORPUS = "--corpus crema_d --corpus-dir path/to/CREMA-D/AudioWAV"
EXPERIMENT = f"table3 {EXAMPLE_CORPUS} --seeds 0 1 2"
COMMANDS = {  # help, and an example
    "run": ("run the series of notebooks, or resume it", EXAMPLE_CORPUS),
    "experiment": ("execute the runs of an experiment, or resume them", EXPERIMENT),
    "plan": ("print what is done, what is missing, and how long it will take", EXPERIMENT),
    "report": ("write the results so far as one offline HTML file", "--run-dir runs/demo"),
    "verify": ("compare the files of a run with their recorded hashes", "runs/demo"),
    "recognize": ("recognize emotions over time, and write CSV", "talk.mp3 --model runs/demo"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gmp_utils", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, example) in COMMANDS.items():
        about = f"{text[0].upper()}{text[1:]}."
        example = f"example: python -m gmp_utils {name} {example}"
        command = subparsers.add_parser(name, help=text, description=about, epilog=example)
        if name == "verify":
            command.add_argument("run_dir", metavar="RUN", help="folder of a run or an experiment")
        elif name == "recognize":
            _add_recognition(command)
        else:
            _add_settings(command, name)
    return parser


def _add_settings(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options of a run or an experiment; `plan` and `report` take those of both."""
    from gmp_utils.runs.paths import INITIAL_MODELS

    add = command.add_argument
    numbers = {"type": int, "nargs": "*", "default": [], "metavar": "N"}
    if name != "run":
        text = "an experiment in workflow/config, or a YAML file; plan and report take a run without it"
        add("experiment", metavar="NAME", help=text, nargs=None if name == "experiment" else "?")
        add("--seeds", **numbers, help="of an experiment (default: those declared)")
    add("--corpus", default="", help="such as crema_d, iemocap or table (default: emodb)")
    text = "its recordings, or the file of a table (default for emodb: the package's)"
    add("--corpus-dir", default="", metavar="DIR", help=text)
    add("--test-corpus", default="", metavar="CORPUS", help="another corpus to test on")
    add("--test-corpus-dir", default="", metavar="DIR", help="its recordings")
    add("--encoder", default="", help="a folder, or name[@revision] on the hub (default: embedded)")
    text = "folds, numbered from 1 (default: 1, or those of a preset or declared)"
    add("--folds", **numbers, help=text)
    if name != "experiment":
        text = "initial models of fine-tuning (default: retrained, the model of notebook 05)"
        add("--finetune-from", nargs="*", choices=INITIAL_MODELS, default=[], help=text)
        add("--recipe", default="", help="a system of presets/recipes (default: gmp-tl)")
    files = {"nargs": "*", "action": "extend", "default": [], "metavar": "FILE"}
    add("--preset", **files, help="YAML files; the last one wins")
    text = "folder of the results (default: in runs/, named after corpus, encoder, presets, recipe)"
    add("--run-dir", default="", metavar="DIR", help=text)
    if name not in ("run", "experiment"):
        return
    add("--cores", type=int, metavar="N", help="processor cores (default: all)")
    text = "models to train in parallel, each on a GPU (default: all GPUs; without any, one)"
    add("--gpus", type=int, metavar="N", help=text)
    text = "also log training runs to tensorboard, wandb or mlflow, comma-separated"
    add("--report-to", default="", metavar="TRACKERS", help=text)
    text = "a Snakemake profile, such as workflow/profiles/slurm, which then sets cores and GPUs"
    add("--profile", default="", metavar="DIR", help=text)
    usage = command.format_usage().removeprefix("usage: ").rstrip()
    command.usage = f"{usage} [-- SNAKEMAKE OPTIONS]"


def _new_file(name: str) -> Path:
    if Path(name).is_dir() or not Path(name).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{name}: expected a file in an existing folder")
    return Path(name)


def _add_recognition(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("recordings", nargs="+", metavar="FILE", help="recordings, or folders of them")
    text = "a run, a stage of notebook 06, or a published model (default: %(default)s)"
    add("--model", default="runs/demo", help=text)
    add("--out", type=_new_file, metavar="FILE", help="CSV file (default: the standard output)")
    add("--window", type=float, default=6.0, metavar="S", help="seconds (default: %(default)s)")
    text = "seconds between windows, at most (default: %(default)s)"
    add("--hop", type=float, default=3.0, metavar="S", help=text)
    text = "divide recordings at pauses first, so that a short utterance has one row"
    add("--by-utterance", action="store_true", help=text)


def _given(options: argparse.Namespace) -> set[str]:
    """Names of the settings that a command has a value for."""
    from gmp_utils.runs.experiments import SETTINGS

    return {name for name in SETTINGS if getattr(options, name, None)}


def _check_replaced(made: dict, plan, corpus: str) -> None:
    """Raise a GmpError if a plan replaces a run by an experiment, or by one on another corpus unasked."""
    plans = made, asdict(plan)
    used, found = ({run["parameters"].get("corpus", "emodb") for run in x["runs"]} for x in plans)
    if found and not found & used and not corpus:
        problem = f"{plan.folder} has a run on {min(used)}, found {min(found)}"
        raise GmpError(f"{problem}; set CORPUS={min(used)} again, or another folder with RUN.")
    was, is_now = ("an experiment" if x["experiment"] else "a run" for x in plans)
    if was != is_now:
        problem = f"{plan.folder} has {was}, found settings of {is_now}"
        raise GmpError(f"{problem}; set another folder with RUN.")


def _plan(options: argparse.Namespace):
    """Plan the runs that a command's options describe. A folder alone stands for the run that is in it."""
    from gmp_utils.runs.experiments import SETTINGS, Settings, as_plan, lay_out
    from gmp_utils.runs.files import read_json
    from gmp_utils.runs.paths import NOTEBOOKS, ROOT, run_folder

    if not NOTEBOOKS.is_dir():
        raise GmpError(f"{ROOT}: no notebooks/ here; run this in a checkout of the project.")
    settings = {name: value for name, value in vars(options).items() if name in SETTINGS}
    plan = lay_out(Settings(**settings))
    saved = run_folder(plan.folder) / "plan.json"
    resumable = {"run_dir"} if options.command == "run" else set()  # make run alone is the demo
    if not saved.is_file():
        return plan
    values = read_json(saved)
    if not resumable <= _given(options) <= {"run_dir"}:
        _check_replaced(values, plan, options.corpus)
        return plan
    made = as_plan(values)
    if run_folder(made.folder) != run_folder(plan.folder):
        found = f"{plan.folder} has the plan of {made.folder}"
        raise GmpError(f"{found}; give the settings again that it was made with, such as CORPUS.")
    return made


def _execute(options: argparse.Namespace, extra: list[str]) -> int:
    """Run Snakemake with the options of a command; returns its exit status.

    It hangs if it gets a signal twice, so it has its own process group, to which signals are forwarded.
    """
    if sys.platform == "win32":
        raise GmpError("runs need Linux or macOS; on Windows, work in WSL.")
    from gmp_utils.runs import experiments, hardware, on_gpu
    from gmp_utils.runs.paths import ROOT, run_folder

    plan, gpus, cores = _plan(options), options.gpus, options.cores
    impossible = plan.experiment["impossible"] if plan.experiment else {}
    for name, reason in impossible.items():
        print(f"not possible: {name} ({reason})")
    if not plan.runs:
        raise GmpError("no variant of the experiment is possible, see above.")
    if not options.profile:
        gpus = len(on_gpu.gpus()) if gpus is None else gpus
        cores = cores or hardware.cores()
    snakemake = ["--config", f"gpus={gpus or 0}"]
    snakemake += ["--keep-going"] * bool(plan.experiment)
    snakemake += ["--profile", options.profile] if options.profile else []
    snakemake += ["--resources", f"gpu={max(gpus, 1)}"] if gpus is not None else []
    snakemake += ["--cores", str(cores)] if cores else []
    environment = os.environ | ({"REPORT_TO": options.report_to} if options.report_to else {})
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if options.gpus == 0 else {}
    with experiments.prepare(plan):
        path = run_folder(plan.folder) / "plan.json"
        command = plan.command(path, *snakemake, *extra)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)

        def forward(number: int, _) -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                signal.signal(number, forward)
        return process.wait()


def _recognize(options: argparse.Namespace) -> int:
    """Write the table of emotions, and print which recordings could not be read."""
    from gmp_utils.runs.hardware import prepare_libraries
    from gmp_utils.stages.recognize import recognize

    prepare_libraries()
    with redirect_stdout(sys.stderr):  # the standard output is for the table
        settings = {name: getattr(options, name) for name in ("window", "hop", "by_utterance")}
        table = recognize(options.recordings, options.model, **settings)
    failed = table.dropna(subset="error")
    for message in failed.error:
        print(message, file=sys.stderr)
    table.to_csv(options.out or sys.stdout, index=False, float_format="%.4f")
    if options.out:
        n_files, n_rows = len(set(table.file)) - len(failed), len(table) - len(failed)
        print(f"{options.out}: {n_rows} rows of {n_files} recordings", file=sys.stderr)
    return int(len(failed) > 0)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 1 if anything failed, 130 after Ctrl-C, or Snakemake's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    executes = arguments[:1] in (["run"], ["experiment"])
    split = arguments.index("--") if executes and "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:split])
    try:
        if executes:
            return _execute(options, arguments[split + 1 :])
        if options.command == "recognize":
            return _recognize(options)
        from gmp_utils.runs import experiments, paths, progress, stage

        if options.command == "verify":
            problems = stage.verify(options.run_dir)
            print(*problems or [f"{options.run_dir}: all files match their hashes"], sep="\n")
            return int(len(problems) > 0)
        plan = _plan(options)
        folder = paths.run_folder(plan.folder)
        by_hand = _given(options) <= {"run_dir"} and (folder / "parameters").is_dir()
        if (folder / "plan.json").is_file() or not by_hand:
            with suppress(GmpError), experiments.prepare(plan):
                pass  # writes the parameters, unless the run is in progress
        (progress.print_progress if options.command == "plan" else progress.write_report)(plan)
    except (GmpError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
