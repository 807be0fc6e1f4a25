/* main_ctl.c - dsparkctl: asks a running daemon, over HTTP or over the internal RPC door. */
#include "cli/ctl.h"
#include "cli/ctl_rpc.h"
#include "cli/exit.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define KEY(member) offsetof(ds_ctl_conf, member)

static const ds_conf_key KEYS[] = {
    {"url", DS_CONF_STR, KEY(url), "http://127.0.0.1:8000", .help = "address of the daemon's HTTP door"},
    {"rpc", DS_CONF_STR, KEY(rpc), NULL,
     .help = "use the RPC door at this ZeroMQ endpoint instead, such as ipc:///run/dspark/rpc"},
    {"model_id", DS_CONF_STR, KEY(model_id), NULL,
     .help = "model to ask; without it the first that is served"},
    {"system", DS_CONF_STR, KEY(system), NULL, .help = "chat: system message"},
    {"thinking", DS_CONF_BOOL, KEY(thinking), "true", .help = "chat: let the template open a thinking block"},
    {"max_tokens", DS_CONF_INT, KEY(max_tokens), "512", 1, 1 << 20, .unit = "tokens",
     .help = "longest answer"},
    {"temperature", DS_CONF_FLOAT, KEY(temperature), "0.7", 0, 2, .help = "0 is greedy"},
    {"top_p", DS_CONF_FLOAT, KEY(top_p), "1", 0, 1, .help = "nucleus sampling; 1 is off"},
    {"top_k", DS_CONF_INT, KEY(top_k), "0", 0, INT32_MAX, .help = "0 is off"},
    {"seed", DS_CONF_INT, KEY(seed), "-1", -1, 0x1p53,
     .help = "same seed, same answer; -1 leaves it to chance"},
    {"stop", DS_CONF_STR, KEY(stop), NULL, .help = "text that ends the answer"},
    {"marks", DS_CONF_ENUM, KEY(marks), "auto", .choices = "auto|color|brackets|off",
     .help = "chat, complete: how accepted drafts are marked in the text; auto: color at a terminal"},
    {"summary", DS_CONF_ENUM, KEY(summary), "auto", .choices = "auto|on|off",
     .help = "chat, complete: tokens, steps saved by drafts and speed, on stderr; auto: at a terminal"},
    {"timeout_ms", DS_CONF_INT, KEY(timeout_ms), "600000", 1, 86400000, .unit = "ms",
     .help = "longest request"},
    {"interval_ms", DS_CONF_INT, KEY(interval_ms), "1000", 50, 60000, .unit = "ms",
     .help = "status, top: time between two looks, over which rates are taken"},
    {"once", DS_CONF_BOOL, KEY(once), "false",
     .help = "top: print one table and exit (also without a terminal)"},
    {"json", DS_CONF_BOOL, KEY(json), "false", .help = "write JSON"},
};

static const struct {
    const char *name;
    ds_code (*run)(ds_ctl *c, int argc, char **argv, ds_err *err);
} COMMANDS[] = {{"status", ds_ctl_status},     {"models", ds_ctl_models},     {"chat", ds_ctl_chat},
                {"complete", ds_ctl_complete}, {"tokenize", ds_ctl_tokenize}, {"top", ds_ctl_top}};

static const ds_conf_prog PROG = {"dsparkctl",
                                  "Asks a running dsparkd: its state, its models, an answer.",
                                  "COMMAND [words] [options]",
                                  KEYS,
                                  sizeof KEYS / sizeof *KEYS,
                                  "Commands:\n"
                                  "  status            workers, KV use, throughput, queue\n"
                                  "  models            models served\n"
                                  "  chat [TEXT]       talk; with TEXT one question\n"
                                  "  complete [TEXT]   continue TEXT (or stdin)\n"
                                  "  tokenize TEXT     token ids of TEXT\n"
                                  "  top               live view; q quits\n\n"
                                  "Exit codes: 0 done, 1 the request failed, 64 wrong usage, 74 the daemon "
                                  "cannot be reached, 130 interrupted."};

static volatile int g_stop;

static void on_signal(int sig)
{
    (void)sig;
    g_stop = 1;
}

static void catch_signals(void)
{
    struct sigaction act = {.sa_handler = on_signal}; /* without SA_RESTART: a read at the prompt ends */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int exit_code(ds_code code)
{
    if (g_stop)
        return DS_CLI_INTERRUPTED;
    switch (ds_err_class(code)) {
    case DS_CLASS_NONE:
        return DS_CLI_DONE;
    case DS_CLASS_IO:
        return DS_CLI_UNREACHABLE;
    default:
        return DS_CLI_FAILED;
    }
}

static int run_command(const ds_ctl_conf *conf, int argc, char **argv)
{
    ds_err err = {0};
    size_t i = 0, n = sizeof COMMANDS / sizeof *COMMANDS;
    while (i < n && (argc == 0 || strcmp(argv[0], COMMANDS[i].name) != 0))
        i++;
    if (i == n) {
        fprintf(stderr,
                "dsparkctl: %s%s; commands are status, models, chat, complete, tokenize, top (--help)\n",
                argc ? "unknown command " : "no command", argc ? argv[0] : "");
        return DS_CLI_USAGE;
    }
    ds_ctl c = {.conf = conf, .stop = &g_stop};
    ds_code code = conf->rpc ? ds_ctl_rpc_open(conf, &c.rpc, &err)
                             : ds_http_open(conf->url, (int)conf->timeout_ms, &g_stop, &c.http, &err);
    if (!code)
        code = COMMANDS[i].run(&c, argc - 1, argv + 1, &err);
    if (code && code != DS_ECANCELLED)
        fprintf(stderr, "dsparkctl: %s\n", err.msg);
    ds_ctl_rpc_close(c.rpc);
    ds_http_close(c.http);
    return exit_code(code);
}

int main(int argc, char **argv)
{
    ds_ctl_conf conf = {0};
    ds_conf_action action;
    ds_err err = {0};
    int rest, status = 0;
    if (ds_conf_load(&PROG, &conf, argc, argv, environ, &action, &rest, &err)) {
        fprintf(stderr, "dsparkctl: %s\n", err.msg);
        return DS_CLI_USAGE;
    }
    catch_signals();
    if (action == DS_CONF_RUN)
        status = run_command(&conf, argc - rest, argv + rest);
    else
        status = ds_conf_show(&PROG, &conf, action) ? DS_CLI_UNREACHABLE : DS_CLI_DONE;
    ds_conf_free(&PROG, &conf);
    return status;
}
