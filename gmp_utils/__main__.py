"""Emotions in recordings, from the command line: ``python -m gmp_utils recognize FILE…``."""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Recognise, write a table, and say what could not be read.

    Returns
    -------
    status : int
        0; 1 if any recording could not be read, or all, the model or the windows did not go; 130 if it was
        stopped. Wrong arguments exit with 2.
    """
    parser = argparse.ArgumentParser("python -m gmp_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("recognize", help="emotions over time, of recordings or folders")
    command.add_argument(
        "recordings", nargs="+", metavar="FILE", help="recording, or a folder of them"
    )
    command.add_argument(
        "--model",
        default="runs/demo",
        help="a run, a stage of notebook 06, a model's folder, a hub name",
    )
    command.add_argument(
        "--out", type=Path, help="CSV file; without it the table is printed, as CSV"
    )
    command.add_argument("--window", type=float, default=6.0, help="seconds that are heard at once")
    command.add_argument("--hop", type=float, default=3.0, help="seconds between windows, at most")
    given = parser.parse_args(arguments)
    if given.out and (given.out.is_dir() or not given.out.absolute().parent.is_dir()):
        parser.error(f"--out {given.out}: expected a file in a folder that is there.")

    import transformers

    from gmp_utils import GmpError
    from gmp_utils.stages.recognize import recognize

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):  # the table alone goes to the standard output
            table = recognize(given.recordings, given.model, window=given.window, hop=given.hop)
    except GmpError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    failed = table.dropna(subset="error")
    for message in failed.error:
        print(message, file=sys.stderr)
    table.to_csv(given.out or sys.stdout, index=False, float_format="%.4f")
    if given.out:
        heard = len(set(table.file)) - len(failed)
        print(
            f"{given.out}: {len(table) - len(failed)} rows of {heard} recordings", file=sys.stderr
        )
    return int(len(failed) > 0)


if __name__ == "__main__":
    sys.exit(main())
