/* fake_worker.c - dspark-fake-worker: the real link, the real engine, and a model that is a hash
 * (hash_target.h). For tests of routers and clients; takes fault orders. Not installed. Engine thread = main
 * thread. */
#include "base/conf.h"
#include "base/log.h"
#include "proto/socket.h"
#include "tests/lib/hash_draft.h"
#include "worker/exit.h"
#include "worker/link_int.h"
#include "worker/serve.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

typedef struct options {
    char *connect, *name, *model, *fault, *log_level;
    int64_t vocab, first_token, eos, eos_odds, max_positions, max_seqs, max_queue, max_step_rows, kv_pages,
        step_us, draft_block, fault_after, poison, heartbeat_ms, router_timeout_ms, parent_pid;
    double draft_right;
} options;

#define O(field) offsetof(options, field)
static const ds_conf_key g_keys[] = {
    {"connect", DS_CONF_STR, O(connect), NULL, 0, 0, NULL, "", "router's endpoint for workers"},
    {"name", DS_CONF_STR, O(name), NULL, 0, 0, NULL, "", "process name (default fake-PID)"},
    {"model", DS_CONF_STR, O(model), "fake", 0, 0, NULL, "", "served model name"},
    {"vocab", DS_CONF_INT, O(vocab), "1000", 2, 1 << 24, NULL, "tokens", "vocabulary"},
    {"first_token", DS_CONF_INT, O(first_token), "0", 0, 1 << 24, NULL, "", "lowest id it generates"},
    {"eos", DS_CONF_INT, O(eos), "-1", -1, 1 << 24, NULL, "", "end-of-sequence id; -1: none"},
    {"eos_odds", DS_CONF_INT, O(eos_odds), "0", 0, 1 << 24, NULL, "",
     "one token in so many is eos; 0: never"},
    {"max_positions", DS_CONF_INT, O(max_positions), "4096", 2, 1 << 20, NULL, "tokens", "longest sequence"},
    {"max_seqs", DS_CONF_INT, O(max_seqs), "64", 1, 4096, NULL, "", "sequences at once"},
    {"max_queue", DS_CONF_INT, O(max_queue), "256", 0, 32768, NULL, "", "requests waiting"},
    {"max_step_rows", DS_CONF_INT, O(max_step_rows), "4096", 1, 65536, NULL, "rows", "rows of a step"},
    {"kv_pages", DS_CONF_INT, O(kv_pages), "16384", 1, 1 << 20, NULL, "pages", "pages of the KV pool"},
    {"step_us", DS_CONF_INT, O(step_us), "0", 0, 60000000, NULL, "us", "time of one step"},
    {"draft_block", DS_CONF_INT, O(draft_block), "0", 0, DS_MAX_BLOCK, NULL, "tokens",
     "drafts a pass; 0: none"},
    {"draft_right", DS_CONF_FLOAT, O(draft_right), "0.7", 0, 1, NULL, "",
     "probability that a draft is right"},
    {"fault", DS_CONF_ENUM, O(fault), "none", 0, 0, "none|die|stop|wedge|garbage|nan|bad_id|lost", "",
     "what goes wrong"},
    {"fault_after", DS_CONF_INT, O(fault_after), "0", 0, 1 << 30, NULL, "tokens", "when it goes wrong"},
    {"poison", DS_CONF_INT, O(poison), "-1", -1, 1 << 24, NULL, "",
     "dies when it meets this token; -1: none"},
    {"heartbeat_ms", DS_CONF_INT, O(heartbeat_ms), "250", 10, 60000, NULL, "ms", "heartbeat"},
    {"router_timeout_ms", DS_CONF_INT, O(router_timeout_ms), "10000", 50, 600000, NULL, "ms",
     "silent router"},
    {"parent_pid", DS_CONF_INT, O(parent_pid), "0", 0, 1 << 30, NULL, "", "stop when it is not the parent"},
    {"log_level", DS_CONF_ENUM, O(log_level), "info", 0, 0, "error|warn|info|debug", "", "how much to log"},
};
static const ds_conf_prog g_prog = {"dspark-fake-worker",
                                    "a worker for tests",
                                    "--connect ENDPOINT [options]",
                                    g_keys,
                                    sizeof g_keys / sizeof g_keys[0],
                                    NULL};

/* One process, one worker: what the fault orders need to reach. */
static struct {
    options opt;
    ds_serve *serve;
    ds_link *link;
    int done; /* the fault has happened */
} g;

static int fault_is(const char *name)
{
    return strcmp(g.opt.fault, name) == 0;
}

static void send_garbage(void)
{
    static const char junk[] = "\x08\x01\x22\xff\xff\xff\x7fgarbage";
    uint32_t n = sizeof junk - 1;
    pthread_mutex_lock(&g.link->lock);
    ds_buf_append(&g.link->out, &n, sizeof n);
    ds_buf_append(&g.link->out, junk, n);
    pthread_mutex_unlock(&g.link->lock);
}

static void before_step(hash_target *t, ds_code *ret)
{
    if (g.opt.step_us)
        usleep((useconds_t)g.opt.step_us);
    if (g.done || fault_is("none") || t->tokens < g.opt.fault_after)
        return;
    g.done = 1;
    usleep(20000); /* what was posted before leaves first */
    if (fault_is("die"))
        kill(getpid(), SIGKILL);
    if (fault_is("stop"))
        kill(getpid(), SIGSTOP);
    while (fault_is("wedge"))
        pause();
    if (fault_is("garbage"))
        send_garbage();
    if (fault_is("lost"))
        *ret = DS_ELOST;
    t->nan_next = fault_is("nan");
}

static ds_code poisoned_forward(void *model, const ds_kv_pool *kv, ds_step_args *a, ds_err *err)
{
    for (int i = 0; i < a->rows.T; i++)
        if (a->rows.token[i] == g.opt.poison)
            kill(getpid(), SIGKILL);
    return hash_forward(model, kv, a, err);
}

static void on_event(void *ctx, const ds_event *ev)
{
    (void)ctx;
    static ds_sample_out bad;
    static long tokens;
    ds_event copy = *ev;
    if (ev->kind == DS_EV_TOKENS && fault_is("bad_id") && tokens++ >= g.opt.fault_after) {
        bad = ev->token[0];
        bad.token = (int32_t)g.opt.vocab + 5;
        copy.token = &bad;
        copy.n = 1;
    }
    ds_serve_event(g.serve, &copy);
}

static ds_code serve(const options *o, int signal_fd, ds_err *err)
{
    hash_target fake;
    int block = (int)o->draft_block, rows = (int)(o->max_seqs > 64 ? o->max_seqs : 64) * (1 + block);
    hash_draft draft;
    ds_target target = hash_init(&fake, (int)o->vocab, (int)o->max_positions, rows);
    fake.first = (int)(o->first_token < o->vocab ? o->first_token : 0);
    fake.span = (int)o->vocab - fake.first;
    fake.eos = (int)o->eos;
    fake.eos_odds = o->eos >= 0 ? (int)o->eos_odds : 0;
    target.forward = poisoned_forward;
    if (o->eos >= 0)
        fake.info.n_eos = 1, fake.info.eos[0] = (int)o->eos;
    ds_engine_conf ec = {.max_seqs = (int)o->max_seqs,
                         .max_step_rows = (int)o->max_step_rows,
                         .max_logit_rows = rows,
                         .max_queue = (int)o->max_queue,
                         .kv_pages = (int)o->kv_pages,
                         .page_tokens = 16,
                         .prefix_cache = 1,
                         .spec = DS_SPEC_MAX,
                         .clock = ds_clock_system()};
    ds_engine *engine;
    DS_TRY(ds_serve_create(&g.serve, err));
    ds_drafter drafter = hash_draft_init(&draft, &fake, block, o->draft_right);
    DS_TRY(ds_engine_create_on(&ec, &target, block ? &drafter : NULL, on_event, NULL, &engine, err));
    fake.before_step = before_step; /* not while step costs are measured */
    fake.tokens = 0;
    char name[64];
    snprintf(name, sizeof name, "fake-%d", (int)getpid());
    ds_pb_caps caps = DSPARK__V1__CAPABILITIES__INIT;
    int32_t eos = (int32_t)o->eos;
    caps.model = o->model;
    caps.arch = (char *)"Hash";
    caps.device = (char *)"none";
    caps.weights = (char *)"none";
    caps.draft = (char *)(block ? "oracle" : "");
    caps.max_draft = (uint32_t)block;
    caps.vocab = (uint32_t)o->vocab;
    caps.max_positions = (uint32_t)ds_engine_max_len(engine);
    caps.max_seqs = (uint32_t)o->max_seqs;
    caps.max_queue = (uint32_t)o->max_queue;
    caps.kv_tokens = (uint64_t)o->kv_pages * 16;
    caps.eos = &eos;
    caps.n_eos = o->eos >= 0;
    caps.prompt_logprobs = 1;
    caps.default_temperature = caps.default_top_p = NAN;
    caps.default_top_k = -1;
    ds_link_conf lc = {.endpoint = o->connect,
                       .name = o->name ? o->name : name,
                       .caps = &caps,
                       .slots = (int)(o->max_seqs + o->max_queue),
                       .heartbeat_ms = (int)o->heartbeat_ms,
                       .router_timeout_ms = (int)o->router_timeout_ms,
                       .signal_fd = signal_fd,
                       .parent = (pid_t)o->parent_pid};
    DS_TRY(ds_link_open(&lc, &g.link, err));
    ds_code code = ds_serve_run(g.serve, engine, g.link, 16, err);
    ds_link_close(g.link);
    ds_engine_destroy(engine);
    ds_serve_destroy(g.serve);
    free(fake.chain);
    return code;
}

int main(int argc, char **argv, char **envp)
{
    ds_err err = {0};
    ds_conf_action action;
    if (ds_conf_load(&g_prog, &g.opt, argc, argv, envp, &action, NULL, &err) != DS_OK) {
        fprintf(stderr, "dspark-fake-worker: %s\n", err.msg);
        return DS_EXIT_USAGE;
    }
    if (action != DS_CONF_RUN)
        return ds_conf_show(&g_prog, &g.opt, action) == DS_OK ? 0 : DS_EXIT_IO;
    if (!g.opt.connect) {
        fprintf(stderr, "dspark-fake-worker: --connect is missing\n");
        return DS_EXIT_USAGE;
    }
    ds_log_init(g.opt.log_level[0] == 'e'   ? DS_LOG_ERROR
                : g.opt.log_level[0] == 'w' ? DS_LOG_WARN
                : g.opt.log_level[0] == 'd' ? DS_LOG_DEBUG
                                            : DS_LOG_INFO,
                0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    ds_code code = serve(&g.opt, fd, &err);
    if (code != DS_OK)
        ds_log(DS_LOG_ERROR, "fake", "%s", err.msg);
    ds_conf_free(&g_prog, &g.opt);
    close(fd);
    return code == DS_OK           ? 0
           : code == DS_ELOST      ? DS_EXIT_LOST
           : code == DS_ECANCELLED ? DS_EXIT_TEMP
                                   : DS_EXIT_USAGE;
}
