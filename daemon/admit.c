/* admit.c - the queue between requests and workers: bounded in number and in time, by priority then arrival.
 */
#include "daemon/daemon.h"

#include <stdio.h>
#include <string.h>

ds_code ds_admit_check(ds_daemon *d, int n, ds_err *err)
{
    if (d->draining)
        return ds_err_set(err, DS_EDRAINING, "the server is shutting down");
    if (!ds_links_ready(d->links))
        return ds_err_set(err, DS_ELOST, "no worker is ready");
    if (d->n_waiting + n > d->conf.max_waiting)
        return ds_err_set(err, DS_ELIMIT, "%d requests wait already, at most %lld may", d->n_waiting,
                          (long long)d->conf.max_waiting);
    return DS_OK;
}

void ds_admit_push(ds_choice *c, int first)
{
    ds_daemon *d = c->req->d;
    int pri = c->req->params.priority;
    ds_choice *after = d->tail; /* the one c goes behind */
    while (after && (after->req->params.priority > pri || (first && after->req->params.priority == pri)))
        after = after->prev;
    c->prev = after;
    c->next = after ? after->next : d->head;
    *(c->prev ? &c->prev->next : &d->head) = c;
    *(c->next ? &c->next->prev : &d->tail) = c;
    if (!c->queued_ns)
        c->queued_ns = ds_clock_ns(d->clock);
    c->queued = 1;
    d->n_waiting++;
    d->pump = 1;
}

void ds_admit_remove(ds_choice *c)
{
    ds_daemon *d = c->req->d;
    if (!c->queued)
        return;
    *(c->prev ? &c->prev->next : &d->head) = c->next;
    *(c->next ? &c->next->prev : &d->tail) = c->prev;
    c->next = c->prev = NULL;
    c->queued = 0;
    d->n_waiting--;
}

void ds_admit_pump(ds_daemon *d)
{
    d->pump = 0;
    while (d->head) {
        ds_choice *c = d->head;
        ds_pb_submit s;
        ds_pb_sampling sampling;
        ds_err err = {0};
        uint64_t wire;
        ds_choice_submit(c, &s, &sampling);
        ds_code code = ds_links_submit(d->links, &s, c->avoid[0] ? c->avoid : NULL, c, &wire, &err);
        if (code == DS_ELIMIT && !err.field[0])
            return; /* `room` will call again */
        if (code) {
            ds_request_fail(c->req, &err);
            continue;
        }
        ds_choice_enter(c, CHOICE_FLYING);
        c->wire = wire;
        c->n_start = c->n_out;
        snprintf(c->avoid, sizeof c->avoid, "%s", ds_links_holder(d->links, wire));
    }
}

void ds_admit_expire(ds_daemon *d)
{
    uint64_t now = ds_clock_ns(d->clock), limit = (uint64_t)d->conf.queue_ms * 1000000;
    for (ds_choice *c = d->head; c;) {
        if (now - c->queued_ns <= limit) {
            c = c->next;
            continue;
        }
        ds_err err = {0};
        if (ds_links_ready(d->links))
            ds_err_set(&err, DS_ELIMIT, "no worker had room for %lld ms", (long long)d->conf.queue_ms);
        else
            ds_err_set(&err, DS_ELOST, "no worker was ready for %lld ms", (long long)d->conf.queue_ms);
        ds_request_fail(c->req, &err);
        c = d->head; /* failing a request takes all its choices off the queue */
    }
}
