"""The verbs, in the order of --help."""

from __future__ import annotations

from balancer.cli import (
    compile_verb,
    hardware_verbs,
    model_verbs,
    plan_verbs,
    predict_verb,
    run_verbs,
    size_verb,
    tune_verb,
)
from balancer.cli.arguments import Verb

VERBS = (
    Verb(
        "solve", "find the best plan for N TPUs, and write it with -o", plan_verbs.solve_arguments, plan_verbs.solve,
        "Finds the plan with the highest predicted rate for a model on N Edge TPUs, compares it with other ways to use them, "
        "and says what is proved. -o writes a directory with everything that is needed to run the plan.",
    ),
    Verb(
        "predict", "predict the cost of segments that you give", predict_verb.predict_arguments, predict_verb.predict,
        "Predicts time and memory of one pipeline whose segments you give, one device for each.",
    ),
    Verb(
        "compare", "compare the best plan with other ways to use N TPUs", plan_verbs.compare_arguments, plan_verbs.compare,
        "Compares ways to use N Edge TPUs for a model: one TPU, a copy of the model on each, the compiler's own split, "
        "published methods, and the best plan. With devices of several kinds: one of each, copies on all, each kind alone. "
        "All are predicted with the same cost model, with an estimate of the energy.",
    ),
    Verb(
        "size", "find out how many TPUs a model is worth", size_verb.size_arguments, size_verb.size,
        "Predicts the rate on 1, 2, 3 ... devices of one kind, alone or beside others, and how many of them keep all "
        "parameters on the chips, reach a rate, or take the least energy.",
    ),
    Verb(
        "compile", "compile a plan's segments with the vendor's edgetpu_compiler", compile_verb.compile_arguments,
        compile_verb.compile_segments,
        "Compiles each segment of a plan with the vendor's edgetpu_compiler and stores the compiled files and the compiler's "
        "reports in the plan's directory. Exit code 1 unless every segment was compiled.",
    ),
    Verb(
        "verify", "check on the CPU that a plan's segments compute the model", plan_verbs.verify_arguments, plan_verbs.verify,
        "Runs a plan's segments and the whole model on the CPU and compares every tensor that a segment passes on, bit for "
        "bit. Exit code 1 if one differs.",
    ),
    Verb(
        "devices", "list the Edge TPUs of this machine", run_verbs.devices_arguments, run_verbs.devices,
        "Lists the Edge TPUs of this machine. Each one is opened once, to see whether it works; a problem is printed with what "
        "to do about it.",
    ),
    Verb(
        "run", "run a plan on arrays or pictures", run_verbs.run_arguments, run_verbs.run,
        "Runs a plan on a file of arrays or a folder of pictures, and writes the outputs for each input. On Edge TPUs the plan "
        "must have been compiled. Exit code 1 if an input failed.",
    ),
    Verb(
        "bench", "measure a plan's rate, latency and stages", run_verbs.bench_arguments, run_verbs.bench,
        "Runs a plan on random inputs, measures rate, latency and the time of each stage, and prints them beside the predicted "
        "numbers. The plan is not changed; see `tune`.",
    ),
    Verb(
        "tune", "improve a plan by measuring it", tune_verb.tune_arguments, tune_verb.tune,
        "Measures the stages of a plan, corrects the predicted costs so that they agree, and solves again, until no better "
        "plan is expected. The plan with the best measurement is written to a new directory. Ctrl-C ends it and keeps the "
        "best plan so far.",
    ),
    Verb(
        "inspect", "show a model, a compiled model, a plan, or the compiler's report", model_verbs.inspect_arguments,
        model_verbs.inspect,
        "Shows a model op by op and which ops the Edge TPU supports; or what a compiled model, a plan or a log of the "
        "compiler holds.",
    ),
    Verb(
        "profile", "write the predicted cost of each op to a file, for editing", model_verbs.profile_arguments,
        model_verbs.profile,
        "Writes a file with the predicted cost of each op of a model. Fill in what you have measured, and give the file to "
        "`balancer solve --profile`. --measure times the ops on this machine's CPU.",
    ),
    Verb(
        "calibrate", "fit the hardware's constants to measured times", hardware_verbs.calibrate_arguments,
        hardware_verbs.calibrate,
        "Fits the constants of the cost model to measured times of stages, or with --cpu to times of small models on this "
        "machine's CPU. -o writes them as a hardware file, which --hardware "
        "of other verbs takes. Needs the extra `calibrate` (scipy).",
    ),
    Verb(
        "synth", "write a synthetic model of any size", model_verbs.synth_arguments, model_verbs.synth,
        "Writes a synthetic model, as used in the published measurements: dense layers (fc) or 3x3 convolutions (conv).",
    ),
    Verb(
        "demo", "try everything on a synthetic model, without any TPU", plan_verbs.demo_arguments, plan_verbs.demo,
        "Solves, cuts, verifies and compares a synthetic model in a temporary folder. It needs no Edge TPU and no compiler.",
    ),
)  # fmt: skip
