"""The command harp-eval: does HARP help this model on this task, by how much, at what cost, and is it more than noise?"""

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments=None) -> int:
    options = parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every task that it reads
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("harp-eval: interrupted; what is finished is kept: the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        print(f"harp-eval: the module {error.name} is missing: pip install with the extra, \".[eval]\" or \".[ray]\"",
              file=sys.stderr)
        return EXIT_FAILURE
    except BrokenPipeError:  # the reader of the output has stopped reading
        sys.stdout = None
        return EXIT_FAILURE
    except _expected_errors() as error:
        print(f"harp-eval: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, (ValueError, FileNotFoundError)) else EXIT_FAILURE


def _joined(arguments: list[str]) -> list[str]:
    """The arguments with --llama-args and its value in one: a value such as "--mlock" would be taken for a flag of ours."""
    joined = []
    for argument in arguments:
        if joined and joined[-1] == "--llama-args":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _expected_errors():
    from harp import HarpError

    from .journal import JournalError
    return JournalError, HarpError, ValueError, OSError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="harp-eval", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run methods on tasks with models; run again to continue",
                              formatter_class=argparse.RawDescriptionHelpFormatter,
                              description="Runs methods on tasks with models. What is finished is in DIR/journal.sqlite at "
                              "once: after an interruption, kill -9 included, the same command goes on.",
                              epilog=_RUN_HELP)
    run.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory of the journal and the report")
    run.add_argument("-m", "--model", action="append", required=True, metavar="FILE", help="GGUF file; repeat for several models")
    run.add_argument("--tasks", required=True, metavar="NAME,...", help="see harp-eval list")
    run.add_argument("--methods", nargs="+", default=["vanilla", "harp"], metavar="METHOD", help="see below")
    run.add_argument("--protocol", choices=["lm-eval", "generative"], default="lm-eval",
                     help="lm-eval's usual one, or the paper's: chat template, answers in words (default: lm-eval)")
    run.add_argument("--seeds", default="0", metavar="N,...", help="seeds of masks and samplers (default: 0)")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each task")
    run.add_argument("--data", metavar="DIR", help="folder of the data files (default: $HARP_EVAL_DATA)")
    run.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences decoded at once (default: 8)")
    run.add_argument("--max-length", type=int, default=2048, metavar="N", help="most tokens of a sequence (default: 2048)")
    run.add_argument("-t", "--threads", type=int, metavar="N", help="threads of a model (default: llama.cpp's)")
    run.add_argument("--kernels", choices=["on", "off"], default="on",
                     help="CPU kernels for a quantised model: ours (on) or llama.cpp's (off), the same for all "
                          "methods (default: on)")
    run.add_argument("--llama-args", default="", metavar="FLAGS", help='flags of llama.cpp, for example "-ngl 99" or "--rpc HOST:PORT"')
    run.add_argument("--run-generated-code", action="store_true",
                     help="allow tasks that run programs written by the model (humaneval): in their own namespaces, without network "
                          "and files, with limits of time and memory (docs/TASKS.md)")
    run.add_argument("--engine", choices=["local", "ray"], default="local", help="ray: replicas on a Ray cluster")
    run.add_argument("--replicas", type=int, default=1, metavar="N", help="number of replicas with --engine ray (default: 1)")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(run=_run)

    report = commands.add_parser("report", help="DIR/report.html and report.md from what is finished",
                                 formatter_class=argparse.RawDescriptionHelpFormatter,
                                 description="Writes report.html and report.md into the (first) DIR from what is finished in all of them.",
                                 epilog=_REPORT_HELP)
    report.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    report.add_argument("--baseline", default="vanilla", metavar="METHOD", help="the method that the others are compared with (default: vanilla)")
    report.add_argument("--examples", default=":", metavar="FROM:TO", help="only these examples of each task, counted from 0, without TO: "
                        ":1000 to choose options on, 1000: to see whether they hold (default: all)")
    report.add_argument("--chosen-on", action="append", default=[], type=Path, metavar="DIR",
                        help="journal of other examples, on which the best second look of each model and task is chosen; repeat for several")
    report.add_argument("--data", action="append", metavar="DIR", help="folder of the data files that were run, for the examples' questions; "
                        "repeat for several (default: $HARP_EVAL_DATA)")
    report.set_defaults(run=_report)

    examples = commands.add_parser("examples", help="write examples of a task, for harp calibrate --examples",
                                   description="Writes the texts that a task scores, one JSON object per line.")
    examples.add_argument("--task", required=True, metavar="NAME", help="a task that scores given texts; see harp-eval list")
    examples.add_argument("--examples", default=":", metavar="FROM:TO", help="examples counted from 0, without TO (default: all)")
    examples.add_argument("--data", metavar="DIR", help="folder of the data files (default: $HARP_EVAL_DATA)")
    examples.set_defaults(run=_examples)

    listing = commands.add_parser("list", help="list the tasks and the preset methods")
    listing.set_defaults(run=_list)
    return top


_RUN_HELP = """\
A METHOD is a preset, or a preset with changes, NAME:KEY=VALUE,...:
  harp   harp:threshold=1.5,strength=0.1   harp-nucleus:top_p=0.95   beam:beams=4
Keys: HARP's options (docs/OPTIONS.md), negative_prompt, temperature, top_p, top_k, min_p, beams, pause; preset=FILE takes options
and negative prompt from a file. harp-eval list shows the presets.

Example:
  export HARP_EVAL_DATA=data
  harp-eval run -o results -m model.gguf --tasks lambada_openai,commonsense_qa --methods vanilla harp harp:redraw=1
  harp-eval report results
"""


_REPORT_HELP = """\
The best of many methods looks better than it is on the examples on which it was chosen. With --chosen-on the summary shows, for
each model and task, the method with HARP that has the best mean on the examples of that directory; among equals the one that
hesitates less, then the first by name. Reported examples are left out of the choice. They are recognised by their texts if
--data has the files of both, or by their numbers if both come from one file; if neither is possible, the report is refused.

Examples:
  harp-eval report results --chosen-on development
  harp-eval report results --examples 1000: --chosen-on results     chosen on the first 1000, reported on the others
"""


def _run(options) -> int:
    from harp.arguments import UINT32_MAX
    from harp.lm_eval_model import shell_words

    from .methods import read_method
    from .runner import Plan, in_process, run
    from .tasks import TASKS

    # a terminated run ends like an interrupted one; in both cases nothing is half written
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = tuple(name.strip() for name in options.tasks.split(","))
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(f"--tasks: no task {', '.join(map(repr, unknown))}; there are {', '.join(TASKS)}")
    for flag, value in {"--batch-size": options.batch_size, "--max-length": options.max_length, "--limit": options.limit,
                        "--replicas": options.replicas, "--threads": options.threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag}: {value} is out of range; allowed: 1..")
    data = _data_folder(options.data)
    for path in options.model:
        if not Path(path).is_file():
            raise FileNotFoundError(f"-m: {path}: no such file")
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"-m: {path}: not a GGUF file (it does not begin with the letters GGUF)")
    plan = Plan(models=tuple(options.model), tasks=names, protocols=(options.protocol,),
                methods=tuple(read_method(text) for text in options.methods), seeds=_seeds(options.seeds, UINT32_MAX),
                settings={"data": data, "limit": options.limit, "batch_size": options.batch_size,
                          "max_length": options.max_length, "n_threads": options.threads, "kernels": options.kernels == "on",
                          "llama_args": tuple(shell_words("--llama-args", options.llama_args)), "run_generated_code": options.run_generated_code})
    engine = in_process
    if options.engine == "ray":
        from .ray_engine import RayEngine
        engine = RayEngine(options.replicas)
    n = run(plan, options.output, engine, show_progress=not options.quiet)
    print(f"{n} examples run; the report: harp-eval report {options.output}", file=sys.stderr)
    return EXIT_OK


def _data_folder(named: str | None) -> str:
    folder = named or os.environ.get("HARP_EVAL_DATA")
    if not folder:
        raise ValueError("--data: which folder has the data files? Name it here or in HARP_EVAL_DATA (docs/TASKS.md)")
    return folder


def _seeds(text: str, most: int) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds: {text!r} is not a list of whole numbers such as 0,1,2") from None
    if min(seeds) < 0 or max(seeds) > most or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: {text!r}: seeds are 0..{most}, each once")
    return seeds


def _report(options) -> int:
    from .report import write_report

    data = options.data or list(filter(None, [os.environ.get("HARP_EVAL_DATA")]))
    for path in write_report(options.directories, options.baseline, _slice(options.examples), options.chosen_on, data):
        print(path)
    return EXIT_OK


def _examples(options) -> int:
    from .examples import examples_of

    data = _data_folder(options.data)
    for example in examples_of(options.task, data, _slice(options.examples)):
        print(json.dumps(example, ensure_ascii=False))
    return EXIT_OK


def _slice(text: str) -> slice:
    start, colon, stop = text.partition(":")
    numbers = [number for number in (start, stop) if number]
    if not colon or not all(number.isdecimal() for number in numbers) or (stop and int(start or 0) >= int(stop)):
        raise ValueError(f"--examples: {text!r} is not FROM:TO with whole numbers, FROM less than TO, such as :1000 or 1000:")
    return slice(int(start) if start else None, int(stop) if stop else None)


def _list(_) -> int:
    from .methods import PRESETS
    from .tasks import PROTOCOLS, TASKS

    print(f"Tasks (protocols: {', '.join(PROTOCOLS)})")
    for task in TASKS.values():
        print(f"  {task.name:16} {task.title:18} {task.metric:12} {', '.join(task.files['lm-eval'])}")
    print("\nPresets of methods")
    for name, (_, _, meaning) in PRESETS.items():
        print(f"  {name:16} {meaning}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
