/* main.c - dspark-worker: one model on one device, serving one router. Start: configuration, memory plan,
 * model, engine, link; then the engine loop on the main thread. Exit codes: worker/exit.h,
 * docs/operations.md. */
#include "base/conf.h"
#include "base/log.h"
#include "proto/socket.h"
#include "worker/exit.h"
#include "worker/identity.h"
#include "worker/loop.h"
#include "worker/plan.h"
#include "worker/profile.h"
#include "worker/serve.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { PAGE_TOKENS = DS_MAX_PAGE_TOKENS };

typedef struct options {
    char *model, *draft, *speculation, *acceptance, *scheduler, *profile_dir, *connect, *device, *device_loop,
        *name, *served_model_name, *weights, *kv_dtype, *isa, *log_level, *log_format;
    int64_t max_draft, threads, kv_pages, kv_bytes, max_seqs, max_step_rows, max_queue, max_model_len,
        heartbeat_ms, router_timeout_ms, parent_pid;
    double draft_threshold;
    int prefix_cache;
} options;

#define KEY(type, field) #field, type, offsetof(options, field)
static const ds_conf_key g_keys[] = {
    {KEY(DS_CONF_STR, model), NULL, .help = "checkpoint folder (Hugging Face layout)"},
    {KEY(DS_CONF_STR, draft), NULL, .help = "DSpark or DFlash draft of the model: turns speculation on"},
    {KEY(DS_CONF_ENUM, speculation), "auto", .choices = "auto|off|max",
     .help = "with a draft: verify what pays (auto), nothing, or every draft (max)"},
    {KEY(DS_CONF_ENUM, acceptance), "coupled", .choices = "coupled|rejection",
     .help = "coupled: a seed gives the same text, drafted or not; rejection: more drafts stand, a seed no "
             "longer repeats sampled text (both draw exactly from the model)"},
    {KEY(DS_CONF_ENUM, scheduler), "auto", .choices = "auto|global|early-stop|stale|threshold|fixed",
     .help = "how many drafts are verified: best for the whole step by current confidences (global), the "
             "paper's Algorithm 1 (early-stop) or its production variant (stale), up to the first confidence "
             "below draft_threshold, or all (fixed); auto: global, under acceptance rejection early-stop"},
    {KEY(DS_CONF_FLOAT, draft_threshold), "0.5", 0, 1, .help = "of scheduler threshold"},
    {KEY(DS_CONF_STR, profile_dir), NULL, .help = "folder of the step cost profile (default: the draft's)"},
    {KEY(DS_CONF_ENUM, device_loop), "auto", .choices = "auto|on|off",
     .help = "verify, accept and draft on the device while all requests decode simply (docs/loop.md), drafts "
             "then ranked by current confidences within a budget two steps old; needs acceptance coupled; "
             "auto: on with device cuda and scheduler auto"},
    {KEY(DS_CONF_INT, max_draft), "0", 0, DS_MAX_BLOCK, .unit = "tokens",
     .help = "drafts verified at once for one request; 0: the draft's block"},
    {KEY(DS_CONF_STR, connect), NULL, .help = "router's endpoint for workers: ipc://PATH or tcp://HOST:PORT"},
    {KEY(DS_CONF_ENUM, device), "cpu", .choices = "cpu|cuda", .help = "what computes"},
    {KEY(DS_CONF_INT, threads), "0", 0, 1024,
     .help = "CPU threads; 0: one per core of the process's affinity"},
    {KEY(DS_CONF_ENUM, isa), "auto", .choices = "auto|avx512bf16|avx512|avx2|portable|invariant",
     .help = "level of the back end; CPU: its instruction sets; CUDA: auto, invariant, portable"},
    {KEY(DS_CONF_STR, name), NULL, .help = "unique process name (default worker-PID)"},
    {KEY(DS_CONF_STR, served_model_name), NULL, .help = "model id in the API (default: the folder's name)"},
    {KEY(DS_CONF_ENUM, weights), "auto", .choices = "auto|int8",
     .help = "auto: as stored; int8: converted at load"},
    {KEY(DS_CONF_ENUM, kv_dtype), "auto", .choices = "auto|f32|bf16", .help = "element type of the KV cache"},
    {KEY(DS_CONF_INT, kv_pages), "0", 0, 1 << 27, .unit = "pages",
     .help = "KV pool of 16-token pages; 0: by kv_bytes"},
    {KEY(DS_CONF_BYTES, kv_bytes), "0", 0, 0x1p50, .unit = "bytes",
     .help = "KV pool; 0: what the sequences may need, at most half of the free memory"},
    {KEY(DS_CONF_INT, max_seqs), "64", 1, 4096, .unit = "requests", .help = "sequences running at once"},
    {KEY(DS_CONF_INT, max_queue), "256", 1, 32768, .unit = "requests",
     .help = "requests waiting in the worker"},
    {KEY(DS_CONF_INT, max_step_rows), "256", 1, 65536, .unit = "rows",
     .help = "tokens of one step; prompts are read in chunks of what decoding leaves"},
    {KEY(DS_CONF_INT, max_model_len), "0", 0, DS_MAX_PROMPT_TOKENS, .unit = "tokens",
     .help = "longest sequence; 0: the model's"},
    {KEY(DS_CONF_BOOL, prefix_cache), "true", .help = "share KV pages of equal prefixes"},
    {KEY(DS_CONF_INT, heartbeat_ms), "250", 10, 60000, .unit = "ms", .help = "heartbeat to the router"},
    {KEY(DS_CONF_INT, router_timeout_ms), "10000", 100, 3600000, .unit = "ms",
     .help = "a router silent for that long is lost: its requests are cancelled"},
    {KEY(DS_CONF_INT, parent_pid), "0", 0, 1 << 30,
     .help = "supervised: end when this is not the parent any more"},
    {KEY(DS_CONF_ENUM, log_level), "info", .choices = "error|warn|info|debug", .help = "how much to log"},
    {KEY(DS_CONF_ENUM, log_format), "text", .choices = "text|json", .help = "one line per event on stderr"},
};

static const ds_conf_prog g_prog = {
    .name = "dspark-worker",
    .summary = "one model on one device, for a dsparkd router",
    .usage = "--model DIR --connect ENDPOINT [options]",
    .keys = g_keys,
    .n_keys = sizeof g_keys / sizeof g_keys[0],
    .footer =
        "SIGTERM finishes what runs and exits 0; a second one stops now (75).\n"
        "Exit codes: 64 configuration, 65 bad model, 66 not found, 69 does not fit, 70 bug, 71 device lost,\n"
        "74 input/output, 75 try again.\n",
};

typedef struct worker {
    options opt;
    ds_identity id;
    ds_model_opts mopts;
    ds_mem_plan plan;
    ds_backend *backend;
    ds_model *model;
    ds_draft_info dinfo; /* block 0: no draft */
    ds_draft *draft;
    ds_engine *engine;
    ds_serve *serve;
    ds_link *link;
    ds_pb_caps caps;
    int signal_fd;
    char name[64], device[DS_MAX_NAME_BYTES + 1];
    ds_profile_key profile_key; /* with a draft */
    char profile_path[1024];
} worker;

static int exit_code(ds_code code)
{
    switch (code) {
    case DS_OK:
        return DS_EXIT_OK;
    case DS_EINVAL:
        return DS_EXIT_USAGE;
    case DS_ENOTFOUND:
        return DS_EXIT_NOTFOUND;
    case DS_ECORRUPT:
    case DS_EUNSUPPORTED:
    case DS_ENUMERIC:
        return DS_EXIT_MODEL;
    case DS_ENOMEM:
        return DS_EXIT_NOFIT;
    case DS_EDEVICE:
    case DS_ELOST:
        return DS_EXIT_LOST;
    case DS_EBUG:
        return DS_EXIT_BUG;
    case DS_EIO:
    case DS_EPROTO:
        return DS_EXIT_IO;
    default:
        return DS_EXIT_TEMP;
    }
}

static ds_code check_options(const options *o, ds_err *err)
{
    if (!o->model)
        return ds_err_field(err, DS_EINVAL, "model", "--model DIR is missing");
    if (!o->connect)
        return ds_err_field(err, DS_EINVAL, "connect", "--connect ENDPOINT is missing");
    if (o->name && (!o->name[0] || strlen(o->name) > DS_MAX_NAME_BYTES))
        return ds_err_field(err, DS_EINVAL, "name", "name must have 1 to %d bytes", DS_MAX_NAME_BYTES);
    if (o->served_model_name &&
        (!o->served_model_name[0] || strlen(o->served_model_name) > DS_MAX_MODEL_BYTES))
        return ds_err_field(err, DS_EINVAL, "served_model_name", "served_model_name must have 1 to %d bytes",
                            DS_MAX_MODEL_BYTES);
    return DS_OK;
}

/* The device may not outlive its supervisor: the kernel tells us, and the link looks again at each heartbeat.
 */
static ds_code bind_to_parent(const options *o, ds_err *err)
{
    if (!o->parent_pid)
        return DS_OK;
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0)
        return ds_err_set(err, DS_EIO, "prctl: %s", strerror(errno));
    if (getppid() != (pid_t)o->parent_pid)
        return ds_err_set(err, DS_ECANCELLED, "the supervisor (pid %lld) is gone", (long long)o->parent_pid);
    return DS_OK;
}

static ds_code open_model(worker *w, ds_err *err)
{
    const options *o = &w->opt;
    if (o->draft)
        DS_TRY(ds_draft_plan(o->draft, o->model, &w->dinfo, err));
    int64_t verify = o->max_seqs * (1 + w->dinfo.block);
    int logit_rows = (int)(verify > 64 ? verify : 64);
    w->mopts =
        (ds_model_opts){.max_rows = (int)(o->max_step_rows > logit_rows ? o->max_step_rows : logit_rows),
                        .max_logit_rows = logit_rows,
                        .max_positions = (int)o->max_model_len,
                        .weights = o->weights,
                        .taps = w->dinfo.taps,
                        .n_taps = w->dinfo.n_taps,
                        .kv_dtype = o->kv_dtype};
    DS_TRY(ds_identity_read(o->model, &w->id, err));
    const char *isa = strcmp(o->isa, "auto") == 0 ? NULL : o->isa;
    DS_TRY(ds_backend_open(o->device, (int)o->threads, isa, &w->backend, err));
    ds_model_info info;
    DS_TRY(ds_model_plan(o->model, &w->mopts, &info, err));
    info.kv_bytes_per_token +=
        w->dinfo.kv_bytes_per_token * ds_dtype_size(info.kv_dtype) / ds_dtype_size(DS_BF16);
    int converted = strcmp(o->weights, "int8") == 0;
    ds_plan_conf pc = {.kv_pages = o->kv_pages,
                       .kv_bytes = o->kv_bytes,
                       .max_seqs = (int)o->max_seqs,
                       .page_tokens = PAGE_TOKENS,
                       .weight_bytes = converted ? info.weight_bytes : w->id.file_bytes,
                       .avail_bytes = w->backend->mem_free};
    DS_TRY(ds_plan_make(&pc, &info, &w->plan, err));
    char text[320];
    ds_plan_text(&w->plan, text, sizeof text);
    ds_log(DS_LOG_INFO, "plan", "%s: %s", w->id.name, text);
    DS_TRY(ds_model_open(o->model, &w->mopts, w->backend, &w->model, err));
    if (!o->draft)
        return DS_OK;
    DS_TRY(
        ds_draft_open(o->draft, w->model, w->mopts.max_rows, (int)o->max_seqs, w->backend, &w->draft, err));
    const ds_draft_info *d = ds_draft_get_info(w->draft);
    ds_log(DS_LOG_INFO, "draft",
           "block %d, %d layers, Markov rank %d, %s; weights %.1f MiB, scratch %.1f MiB", d->block, d->layers,
           d->markov_rank, d->calibrated ? "calibrated" : "not calibrated",
           (double)d->weight_bytes / (1 << 20), (double)d->scratch_bytes / (1 << 20));
    return DS_OK;
}

/* The file of step costs that fits this worker, or none: then they are measured. */
static ds_code find_profile(worker *w, ds_profile *ret, int *ret_known, ds_err *err)
{
    const ds_model_info *info = ds_model_get_info(w->model);
    ds_profile_key *k = &w->profile_key;
    ds_identity draft;
    ds_err why = {0};
    DS_TRY(ds_identity_read(w->opt.draft, &draft, err));
    *k = (ds_profile_key){
        .model = w->id.hash, .draft = draft.hash, .block = w->dinfo.block, .max_seqs = (int)w->opt.max_seqs};
    snprintf(k->device, sizeof k->device, "%s: %s", w->backend->name, w->backend->detail);
    snprintf(k->weights, sizeof k->weights, "%s", ds_dtype_name(info->weight_dtype));
    snprintf(k->kv_dtype, sizeof k->kv_dtype, "%s", ds_dtype_name(info->kv_dtype));
    DS_TRY(ds_profile_path(w->opt.profile_dir ? w->opt.profile_dir : w->opt.draft, k, w->profile_path,
                           sizeof w->profile_path, err));
    ds_code code = ds_profile_load(w->profile_path, k, ret, &why);
    *ret_known = code == DS_OK;
    if (code != DS_OK && code != DS_ENOTFOUND)
        ds_log(DS_LOG_INFO, "profile", "%s; measured anew", why.msg);
    return DS_OK;
}

static void save_profile(worker *w)
{
    ds_profile p;
    ds_err err = {0};
    if (w->profile_path[0] && w->engine && ds_engine_get_profile(w->engine, &p) && p.n_rows &&
        ds_profile_save(w->profile_path, &w->profile_key, &p, &err) != DS_OK)
        ds_log(DS_LOG_INFO, "profile", "not kept, and measured again at the next start: %s", err.msg);
}

static ds_sched_kind schedule_of(const options *o)
{
    static const char *const NAMES[] = {"global", "early-stop", "stale", "threshold", "fixed"};
    for (int i = 0; i < DS_SCHED_KINDS; i++)
        if (strcmp(o->scheduler, NAMES[i]) == 0)
            return (ds_sched_kind)i;
    return o->acceptance[0] == 'r' ? DS_SCHED_EARLY_STOP : DS_SCHED_GLOBAL;
}

static int wants_loop(const options *o)
{
    if (strcmp(o->device_loop, "auto") != 0)
        return o->device_loop[1] == 'n';
    return strcmp(o->device, "cuda") == 0 && o->acceptance[0] == 'c' && strcmp(o->scheduler, "auto") == 0 &&
           o->max_seqs <= DS_LOOP_MAX_SEATS;
}

static void on_captured(void *ctx, int done, int total)
{
    (void)ctx;
    if (done == total || done % 8 == 0)
        ds_log(DS_LOG_INFO, "loop", "captured and timed %d of %d graphs", done, total);
}

static ds_code open_engine(worker *w, ds_err *err)
{
    const options *o = &w->opt;
    ds_profile profile;
    int known = 0;
    if (w->draft)
        DS_TRY(find_profile(w, &profile, &known, err));
    ds_engine_conf ec = {.max_seqs = (int)o->max_seqs,
                         .max_step_rows = w->mopts.max_rows,
                         .max_logit_rows = w->mopts.max_logit_rows,
                         .max_queue = (int)o->max_queue,
                         .kv_pages = w->plan.kv_pages,
                         .page_tokens = PAGE_TOKENS,
                         .prefix_cache = o->prefix_cache,
                         .spec = o->speculation[0] == 'o'   ? DS_SPEC_OFF
                                 : o->speculation[0] == 'm' ? DS_SPEC_MAX
                                                            : DS_SPEC_AUTO,
                         .acceptance = o->acceptance[0] == 'r' ? DS_ACCEPT_REJECTION : DS_ACCEPT_COUPLED,
                         .schedule = schedule_of(o),
                         .threshold = o->draft_threshold,
                         .profile = known ? &profile : NULL,
                         .max_draft = (int)o->max_draft,
                         .device_loop = wants_loop(o),
                         .progress = on_captured,
                         .spec_temps = w->draft ? ds_draft_get_info(w->draft)->T : NULL,
                         .clock = ds_clock_system()};
    DS_TRY(ds_serve_create(&w->serve, err));
    DS_TRY(ds_engine_create_drafted(&ec, w->model, w->draft, w->backend, ds_serve_event, w->serve, &w->engine,
                                    err));
    if (!known)
        save_profile(w);
    return DS_OK;
}

static ds_code open_link(worker *w, ds_err *err)
{
    const options *o = &w->opt;
    const ds_model_info *info = ds_model_get_info(w->model);
    ds_pb_caps *c = &w->caps;
    snprintf(w->name, sizeof w->name, "worker-%d", (int)getpid());
    snprintf(w->device, sizeof w->device, "%s: %s", w->backend->name, w->backend->detail);
    *c = (ds_pb_caps)DSPARK__V1__CAPABILITIES__INIT;
    c->model = o->served_model_name ? o->served_model_name : w->id.name;
    c->arch = (char *)info->arch;
    c->device = w->device;
    c->vocab = (uint32_t)info->vocab;
    c->max_positions = (uint32_t)ds_engine_max_len(w->engine);
    c->max_seqs = (uint32_t)o->max_seqs;
    c->max_queue = (uint32_t)o->max_queue;
    c->kv_tokens = (uint64_t)w->plan.kv_pages * PAGE_TOKENS;
    c->eos = (int32_t *)info->eos;
    c->n_eos = (size_t)info->n_eos;
    c->prompt_logprobs = 1;
    char *slash = o->draft ? strrchr(o->draft, '/') : NULL;
    c->draft = !o->draft ? "" : slash && slash[1] ? slash + 1 : o->draft;
    c->max_draft = (uint32_t)w->dinfo.block;
    c->weights = (char *)ds_dtype_name(info->weight_dtype);
    c->model_hash = w->id.hash;
    c->default_temperature = (double)info->temperature;
    c->default_top_p = (double)info->top_p;
    c->default_top_k = info->top_k;
    ds_link_conf lc = {.endpoint = o->connect,
                       .name = o->name ? o->name : w->name,
                       .caps = c,
                       .slots = (int)(o->max_seqs + o->max_queue),
                       .heartbeat_ms = (int)o->heartbeat_ms,
                       .router_timeout_ms = (int)o->router_timeout_ms,
                       .signal_fd = w->signal_fd,
                       .parent = (pid_t)o->parent_pid};
    return ds_link_open(&lc, &w->link, err);
}

static ds_code run(worker *w, ds_err *err)
{
    DS_TRY(bind_to_parent(&w->opt, err));
    DS_TRY(open_model(w, err));
    DS_TRY(open_engine(w, err));
    DS_TRY(open_link(w, err));
    ds_log(DS_LOG_INFO, "worker", "%s (%s, %s, %s) for %s", w->caps.model, w->caps.arch, w->caps.weights,
           w->device, w->opt.connect);
    return ds_serve_run(w->serve, w->engine, w->link, PAGE_TOKENS, err);
}

static void finish(worker *w)
{
    ds_link_close(w->link);
    save_profile(w);
    if (w->engine)
        ds_engine_destroy(w->engine);
    ds_serve_destroy(w->serve);
    ds_draft_close(w->draft);
    ds_model_close(w->model);
    if (w->backend)
        w->backend->destroy(w->backend);
    if (w->signal_fd >= 0)
        close(w->signal_fd);
    ds_conf_free(&g_prog, &w->opt);
}

static ds_log_level level_of(const char *s)
{
    return s[0] == 'e' ? DS_LOG_ERROR : s[0] == 'w' ? DS_LOG_WARN : s[0] == 'd' ? DS_LOG_DEBUG : DS_LOG_INFO;
}

int main(int argc, char **argv, char **envp)
{
    static worker w = {.signal_fd = -1};
    ds_err err = {0};
    ds_conf_action action;
    sigset_t set;
    if (ds_conf_load(&g_prog, &w.opt, argc, argv, envp, &action, NULL, &err) != DS_OK ||
        (action == DS_CONF_RUN && check_options(&w.opt, &err) != DS_OK)) {
        fprintf(stderr, "dspark-worker: %s\n", err.msg);
        return DS_EXIT_USAGE;
    }
    if (action != DS_CONF_RUN)
        return ds_conf_show(&g_prog, &w.opt, action) == DS_OK ? DS_EXIT_OK : DS_EXIT_IO;
    ds_log_init(level_of(w.opt.log_level), strcmp(w.opt.log_format, "json") == 0);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL); /* before any thread starts: the link reads them from signal_fd */
    w.signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    ds_code code = run(&w, &err);
    if (code != DS_OK)
        ds_log(code == DS_ECANCELLED ? DS_LOG_WARN : DS_LOG_ERROR, "worker", "%s", err.msg);
    finish(&w);
    return exit_code(code);
}
