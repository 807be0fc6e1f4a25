/* supervise.c - see supervise.h. */
#include "daemon/supervise.h"

#include "base/log.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

enum {
    BACKOFF_MIN_MS = 200,
    BACKOFF_MAX_MS = 30000,
    STEADY_NS_PER_MS = 1000000,
    STEADY_MS = 60000, /* a worker that lived so long starts again without delay */
    MAX_ARGS = 40,
};

typedef enum {
    PROC_RUNNING,
    PROC_BACKOFF, /* dead, its timer runs */
    PROC_STOPPED  /* dead, and it stays so */
} proc_state;

typedef struct proc {
    ds_supervisor *sup;
    uv_process_t process;
    uv_timer_t timer;
    proc_state state;
    char name[DS_MAX_NAME_BYTES + 1];
    uint64_t start_ns, backoff_ms;
    int was_ready;
} proc;

struct ds_supervisor {
    ds_daemon *d;
    char binary[4096];
    char *endpoint;
    int n, stopping, handles;
    proc *procs;
};

static void start(proc *p);

static void maybe_free(ds_supervisor *s)
{
    if (s->handles > 0)
        return;
    free(s->endpoint);
    free(s->procs);
    free(s);
}

static void timer_closed(uv_handle_t *h)
{
    proc *p = h->data;
    p->sup->handles--;
    maybe_free(p->sup);
}

static void on_timer(uv_timer_t *t)
{
    start(t->data);
}

/* The one place that says what a dead process does next. */
static void proc_enter(proc *p, proc_state to)
{
    p->state = to;
    if (to == PROC_BACKOFF)
        uv_timer_start(&p->timer, on_timer, p->backoff_ms, 0);
    else if (to == PROC_STOPPED)
        uv_timer_stop(&p->timer);
}

static void process_closed(uv_handle_t *h)
{
    proc *p = h->data;
    p->sup->handles--;
    maybe_free(p->sup);
}

/* A worker that cannot use its configuration, model, files or memory will not be able to a second time. */
static int hopeless(const proc *p, int64_t status, int sig)
{
    return !p->was_ready && !sig &&
           (status == EX_USAGE || status == EX_DATAERR || status == EX_NOINPUT || status == EX_UNAVAILABLE ||
            status == EX_IOERR);
}

static void on_exit_cb(uv_process_t *process, int64_t status, int sig)
{
    proc *p = process->data;
    ds_supervisor *s = p->sup;
    ds_daemon *d = s->d;
    for (int i = 0; i < DS_MAX_WORKERS; i++)
        if (!strcmp(ds_links_worker(d->links, i)->name, p->name))
            p->was_ready = 1;
    uv_close((uv_handle_t *)process, process_closed);
    p->process.pid = 0;
    if (s->stopping) {
        proc_enter(p, PROC_STOPPED);
        return;
    }
    if (hopeless(p, status, sig)) {
        ds_log(DS_LOG_ERROR, "supervise", "worker %s cannot start (exit code %d); giving up", p->name,
               (int)status);
        proc_enter(p, PROC_STOPPED);
        ds_daemon_exit(d, (int)status);
        return;
    }
    uint64_t lived = ds_clock_ns(d->clock) - p->start_ns;
    p->backoff_ms =
        lived > (uint64_t)STEADY_MS * STEADY_NS_PER_MS || !p->backoff_ms ? BACKOFF_MIN_MS : p->backoff_ms * 2;
    if (p->backoff_ms > BACKOFF_MAX_MS)
        p->backoff_ms = BACKOFF_MAX_MS;
    ds_log(DS_LOG_WARN, "supervise", "worker %s ended (%s %d); again in %llu ms", p->name,
           sig ? "signal" : "exit code", sig ? sig : (int)status, (unsigned long long)p->backoff_ms);
    proc_enter(p, PROC_BACKOFF);
    ds_links_drop(d->links, p->name, sig ? "its process was killed" : "its process ended");
}

/* The command line of a worker. Numbers live in `text`; 0 means the worker's own default. */
typedef struct command {
    char *args[MAX_ARGS];
    int n;
    char text[MAX_ARGS][24];
} command;

static void add(command *c, const char *flag, const char *value)
{
    if (!value)
        return;
    DS_ASSERT(c->n + 3 <= MAX_ARGS);
    c->args[c->n++] = (char *)flag;
    c->args[c->n++] = (char *)value;
    c->args[c->n] = NULL;
}

static void add_int(command *c, const char *flag, int64_t value)
{
    char *text = c->text[c->n];
    snprintf(text, sizeof c->text[0], "%lld", (long long)value);
    add(c, flag, value ? text : NULL);
}

static void make_command(const proc *p, command *c)
{
    const ds_dconf *conf = &p->sup->d->conf;
    *c = (command){.args = {(char *)p->sup->binary}, .n = 1};
    add(c, "--config", conf->worker_config);
    add(c, "--model", conf->model);
    add(c, "--draft", conf->draft);
    add(c, "--speculation", conf->speculation);
    add_int(c, "--max-draft", conf->max_draft);
    add(c, "--served-model-name", p->sup->d->model);
    add(c, "--device", conf->device);
    add(c, "--weights", conf->weights);
    add_int(c, "--threads", conf->threads);
    add_int(c, "--kv-bytes", conf->kv_bytes);
    add_int(c, "--max-seqs", conf->max_seqs);
    add_int(c, "--max-step-rows", conf->max_step_rows);
    add_int(c, "--max-model-len", conf->max_model_len);
    add(c, "--connect", p->sup->endpoint);
    add(c, "--name", p->name);
    add_int(c, "--parent-pid", getpid());
    add(c, "--log-level", conf->log_level);
    add(c, "--log-format", conf->log_format);
}

static void start(proc *p)
{
    ds_supervisor *s = p->sup;
    command c;
    make_command(p, &c);
    uv_stdio_container_t io[3] = {{.flags = UV_IGNORE},
                                  {.flags = UV_INHERIT_FD, .data.fd = STDOUT_FILENO},
                                  {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO}};
    uv_process_options_t opts = {
        .exit_cb = on_exit_cb, .file = s->binary, .args = c.args, .stdio_count = 3, .stdio = io};
    p->process.data = p;
    p->start_ns = ds_clock_ns(s->d->clock);
    p->was_ready = 0;
    int rc = uv_spawn(s->d->loop, &p->process, &opts);
    s->handles++;
    if (rc == 0) {
        proc_enter(p, PROC_RUNNING);
        return;
    }
    ds_log(DS_LOG_ERROR, "supervise", "cannot start %s: %s", s->binary, uv_strerror(rc));
    uv_close((uv_handle_t *)&p->process, process_closed);
    p->backoff_ms = BACKOFF_MAX_MS;
    proc_enter(p, PROC_BACKOFF);
}

ds_code ds_supervisor_open(ds_daemon *d, const char *endpoint, ds_supervisor **ret, ds_err *err)
{
    ds_supervisor *s = calloc(1, sizeof *s);
    int n = (int)d->conf.workers;
    if (s) {
        s->procs = calloc((size_t)n, sizeof *s->procs);
        s->endpoint = strdup(endpoint);
    }
    if (!s || !s->procs || !s->endpoint)
        return ds_err_set(err, DS_ENOMEM, "no memory for the supervisor");
    s->d = d;
    s->n = n;
    ssize_t len = readlink("/proc/self/exe", s->binary, sizeof s->binary - 32);
    char *slash = len > 0 ? strrchr(s->binary, '/') : NULL;
    strcpy(slash ? slash + 1 : s->binary, "dspark-worker");
    if (access(s->binary, X_OK)) {
        ds_err_set(err, DS_ENOTFOUND, "there is no %s to start", s->binary);
        ds_supervisor_close(s);
        return DS_ENOTFOUND;
    }
    for (int i = 0; i < n; i++) {
        proc *p = &s->procs[i];
        p->sup = s;
        snprintf(p->name, sizeof p->name, "worker-%d", i);
        uv_timer_init(d->loop, &p->timer);
        p->timer.data = p;
        s->handles++;
        start(p);
    }
    *ret = s;
    return DS_OK;
}

void ds_supervisor_lost(ds_supervisor *s, const char *name)
{
    for (int i = 0; s && i < s->n; i++)
        if (!strcmp(s->procs[i].name, name)) {
            s->procs[i].was_ready = 1;
            if (s->procs[i].state == PROC_RUNNING && s->procs[i].process.pid > 0 && !s->stopping)
                uv_process_kill(&s->procs[i].process, SIGKILL);
        }
}

int ds_supervisor_alive(const ds_supervisor *s)
{
    int alive = 0;
    for (int i = 0; s && i < s->n; i++)
        alive += s->procs[i].state == PROC_RUNNING;
    return alive;
}

void ds_supervisor_stop(ds_supervisor *s, int sig)
{
    if (!s)
        return;
    s->stopping = 1;
    for (int i = 0; i < s->n; i++) {
        if (s->procs[i].state == PROC_RUNNING && s->procs[i].process.pid > 0)
            uv_process_kill(&s->procs[i].process, sig);
        else
            proc_enter(&s->procs[i], PROC_STOPPED);
    }
}

void ds_supervisor_close(ds_supervisor *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n && s->handles; i++)
        uv_close((uv_handle_t *)&s->procs[i].timer, timer_closed);
    maybe_free(s);
}
