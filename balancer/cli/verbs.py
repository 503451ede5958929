"""The verbs, in the order of --help."""

from __future__ import annotations

from balancer.cli import compile_verb, hardware_verbs, model_verbs, plan_verbs, run_verbs
from balancer.cli.arguments import Verb

VERBS = (
    Verb("solve", "find the best plan for N TPUs, and write it with -o", plan_verbs.solve_arguments, plan_verbs.solve),
    Verb("predict", "what given segments would cost", plan_verbs.predict_arguments, plan_verbs.predict),
    Verb(
        "compare",
        "one TPU, copies, the compiler's split, published ways and ours",
        plan_verbs.compare_arguments,
        plan_verbs.compare,
    ),
    Verb("size", "how many TPUs a model is worth", plan_verbs.size_arguments, plan_verbs.size),
    Verb(
        "compile",
        "compile a plan's segments with the vendor's edgetpu_compiler",
        compile_verb.compile_arguments,
        compile_verb.compile_segments,
    ),
    Verb(
        "verify",
        "a plan's segments beside the whole model, bit for bit",
        plan_verbs.verify_arguments,
        plan_verbs.verify,
    ),
    Verb("devices", "the Edge TPUs of this machine", run_verbs.devices_arguments, run_verbs.devices),
    Verb("run", "run a plan on arrays or pictures", run_verbs.run_arguments, run_verbs.run),
    Verb("bench", "measure a plan: rate, latency, every stage", run_verbs.bench_arguments, run_verbs.bench),
    Verb("tune", "measure, correct the costs, solve again", run_verbs.tune_arguments, run_verbs.tune),
    Verb(
        "inspect",
        "a model, a compiled one, a plan, or the compiler's report",
        model_verbs.inspect_arguments,
        model_verbs.inspect,
    ),
    Verb("profile", "write what each op costs, to be edited", model_verbs.profile_arguments, model_verbs.profile),
    Verb(
        "calibrate",
        "fit the hardware's constants to measured times",
        hardware_verbs.calibrate_arguments,
        hardware_verbs.calibrate,
    ),
    Verb(
        "synth",
        "write a synthetic model of the papers' kind, of any size",
        model_verbs.synth_arguments,
        model_verbs.synth,
    ),
    Verb("demo", "the whole job on a synthetic model, without hardware", plan_verbs.demo_arguments, plan_verbs.demo),
)
