/* main_bench.c - dspark-bench: load on a running daemon, forward passes in process, models to time. */
#include "cli/bench.h"
#include "cli/exit.h"
#include "cli/make_model.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY(member) offsetof(ds_bench_conf, member)

static const ds_conf_key KEYS[] = {
    {"url", DS_CONF_STR, KEY(url), "http://127.0.0.1:8000",
     .help = "load: address of the daemon's HTTP door"},
    {"rpc", DS_CONF_STR, KEY(rpc), NULL, .help = "load: use the RPC door at this ZeroMQ endpoint instead"},
    {"model_id", DS_CONF_STR, KEY(model_id), NULL, .help = "load: model to ask; without it the first served"},
    {"api", DS_CONF_ENUM, KEY(api), "auto", .choices = "auto|chat|completions",
     .help = "load: HTTP path; auto is chat for \"turns\", else completions"},
    {"concurrency", DS_CONF_STR, KEY(concurrency), "1,2,4,8", .unit = "1 to 4096 each",
     .help = "load, spec: requests at once, one run for each number"},
    {"rate", DS_CONF_STR, KEY(rates), NULL, .unit = "1/s",
     .help = "load: open loop instead, arrivals a second, one run for each number"},
    {"arrival", DS_CONF_ENUM, KEY(arrival), "poisson", .choices = "poisson|constant",
     .help = "load: gaps of the open loop"},
    {"max_outstanding", DS_CONF_INT, KEY(max_outstanding), "512", 1, 4096, .unit = "requests",
     .help = "load: most requests at once in open loop; later ones wait and are counted"},
    {"requests", DS_CONF_INT, KEY(requests), "0", 0, 1e9, .unit = "requests",
     .help = "load, spec: of each run; 0: by --duration-s, else four a slot and at least 16"},
    {"duration_s", DS_CONF_FLOAT, KEY(duration_s), "0", 0, 86400, .unit = "s",
     .help = "load: start nothing later than this in a run; 0: no such limit"},
    {"warmup", DS_CONF_INT, KEY(warmup), "1", 0, 10000, .unit = "requests",
     .help = "load: unmeasured ones first"},
    {"prompts", DS_CONF_STR, KEY(prompts), NULL,
     .help = "load, spec: JSONL file of {\"prompt\": text or ids} or {\"turns\": [text, ...]}; spec: "
             "several, parted by "
             "commas, each a domain"},
    {"prompt_tokens", DS_CONF_INT, KEY(prompt_tokens), "128", 1, 1 << 20, .unit = "tokens",
     .help = "load: length of synthetic prompts, when there is no --prompts"},
    {"max_tokens", DS_CONF_INT, KEY(max_tokens), "128", 1, 1 << 20, .unit = "tokens",
     .help = "load, spec: of an answer"},
    {"ignore_eos", DS_CONF_BOOL, KEY(ignore_eos), "false",
     .help = "load, spec: answers always have --max-tokens"},
    {"temperature", DS_CONF_FLOAT, KEY(temperature), "0", 0, 2, .help = "load, spec: 0 is greedy"},
    {"seed", DS_CONF_INT, KEY(seed), "1", 0, 0x1p53,
     .help = "of synthetic prompts, arrivals, sampling, weights"},
    {"timeout_ms", DS_CONF_INT, KEY(timeout_ms), "600000", 1, 86400000, .unit = "ms",
     .help = "load: of a request"},
    {"progress", DS_CONF_BOOL, KEY(progress), "true", .help = "show a bar on stderr when it is a terminal"},
    {"json", DS_CONF_STR, KEY(json), NULL,
     .help = "also write the results as JSON to this file, - for stdout"},
    {"model", DS_CONF_STR, KEY(model), NULL, .help = "forward, spec: checkpoint folder"},
    {"random", DS_CONF_STR, KEY(random), NULL,
     .help = "forward: a random model of this shape, made once below --dir"},
    {"dir", DS_CONF_STR, KEY(dir), "build/random-models",
     .help = "folder to write: make-model into it, forward --random into DIR/SHAPE"},
    {"shape", DS_CONF_STR, KEY(shape), "qwen3-0.6b",
     .help = "make-model: tiny, demo, or qwen3- 0.6b 1.7b 4b 8b 14b 32b"},
    {"rows", DS_CONF_STR, KEY(rows), "1,2,4,8,16,32,64,128,256", .unit = "1 to 4096 each",
     .help = "forward: rows of a pass, one measurement each"},
    {"sequences", DS_CONF_INT, KEY(sequences), "1", 1, 4096,
     .help = "forward: sequences the rows are spread over; 1: verification, as many as rows: decoding"},
    {"context", DS_CONF_INT, KEY(context), "0", 0, 1 << 20, .unit = "tokens",
     .help = "forward: tokens already cached in each sequence"},
    {"logits", DS_CONF_ENUM, KEY(logits), "all", .choices = "all|last",
     .help = "forward: rows whose logits are computed; last: as in prefill"},
    {"weights", DS_CONF_ENUM, KEY(weights), "auto", .choices = "auto|int8",
     .help = "forward, spec: as stored, or int8"},
    {"threads", DS_CONF_INT, KEY(threads), "0", 0, 1024, .help = "forward, spec: 0: one per core"},
    {"isa", DS_CONF_ENUM, KEY(isa), "auto", .choices = "auto|avx512bf16|avx512|avx2|portable",
     .help = "forward, spec: instruction set; auto: the best of this machine"},
    {"reps", DS_CONF_INT, KEY(reps), "9", 3, 100000,
     .help = "forward, spec: rounds over all rows or cells; the median is reported"},
    {"draft", DS_CONF_STR, KEY(draft), NULL, .help = "spec: draft of --model"},
    {"modes", DS_CONF_STR, KEY(modes), "all",
     .help = "spec: off first, then fixed lengths (3), thresholds (t0.5), early-stop, stale, auto; all: each "
             "length and one of each other"},
    {"acceptance", DS_CONF_ENUM, KEY(acceptance), "coupled", .choices = "coupled|rejection",
     .help = "spec: which drafts stand"},
    {"synthetic", DS_CONF_STR, KEY(synthetic), NULL,
     .help = "spec: drafts stand by these odds, one a position (0.9,0.85,...), whatever the model says: for "
             "speeds without a trained draft; the text is worthless"},
    {"svg", DS_CONF_STR, KEY(svg), NULL,
     .help = "spec: pictures of throughput over the speed of a user, of rows over load, of acceptance"},
};

static const ds_conf_prog PROG = {
    "dspark-bench",
    "Measures a daemon under load, or in process forward passes of a model and the gain of a draft.",
    "[load | forward | spec | make-model] [options]",
    KEYS,
    sizeof KEYS / sizeof *KEYS,
    "Commands:\n"
    "  load         (default) requests over HTTP or RPC: TTFT, ITL, TPOT, E2E percentiles, throughput\n"
    "  forward      forward passes of 1 to 256 rows: milliseconds, ratio to one row, GB/s, GFLOP/s\n"
    "  spec         speculation off, at every fixed length, and scheduled, over prompts by domain\n"
    "  make-model   a checkpoint folder of a known shape with random weights\n\n"
    "Exit codes: 0 done, 1 failed, 64 wrong usage, 74 a file or connection failed, 130 interrupted."};

static volatile int g_stop;

static void on_signal(int sig)
{
    (void)sig;
    g_stop = 1;
}

static int run(const ds_bench_conf *conf, int argc, char **argv)
{
    const char *command = argc ? argv[0] : "load";
    ds_err err = {0};
    ds_code code;
    if (argc > 1) {
        fprintf(stderr, "dspark-bench: unexpected word %s (--help)\n", argv[1]);
        return DS_CLI_USAGE;
    }
    if (strcmp(command, "load") == 0) {
        code = ds_bench_load(conf, &g_stop, &err);
    } else if (strcmp(command, "forward") == 0) {
        code = ds_bench_forward(conf, &g_stop, &err);
    } else if (strcmp(command, "spec") == 0) {
        code = ds_bench_spec(conf, &g_stop, &err);
    } else if (strcmp(command, "make-model") == 0) {
        code = ds_make_model(conf->shape, conf->dir, (uint64_t)conf->seed, &err);
    } else {
        fprintf(stderr,
                "dspark-bench: unknown command %s; commands are load, forward, spec, make-model (--help)\n",
                command);
        return DS_CLI_USAGE;
    }
    if (code && code != DS_ECANCELLED)
        fprintf(stderr, "dspark-bench: %s\n", err.msg);
    if (g_stop)
        return DS_CLI_INTERRUPTED;
    return !code ? DS_CLI_DONE : ds_err_class(code) == DS_CLASS_IO ? DS_CLI_UNREACHABLE : DS_CLI_FAILED;
}

int main(int argc, char **argv)
{
    ds_bench_conf conf = {0};
    ds_conf_action action;
    ds_err err = {0};
    int rest, status;
    if (ds_conf_load(&PROG, &conf, argc, argv, environ, &action, &rest, &err)) {
        fprintf(stderr, "dspark-bench: %s\n", err.msg);
        return DS_CLI_USAGE;
    }
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (action == DS_CONF_RUN)
        status = run(&conf, argc - rest, argv + rest);
    else
        status = ds_conf_show(&PROG, &conf, action) ? DS_CLI_UNREACHABLE : DS_CLI_DONE;
    ds_conf_free(&PROG, &conf);
    return status;
}
