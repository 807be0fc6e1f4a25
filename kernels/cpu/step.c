/* step.c - the ops of the device loop (docs/loop.md), plainly: what kernels/cuda is tested against. A few
 * thousand values a round, one thread. */
#include "kernels/cpu/cpu.h"

#include "base/rng.h"

#include <math.h>
#include <string.h>

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* The seats of a control array; DS_EINVAL when it names one that is not there, or too many. */
static int listed(const int32_t *control, int S, int max_n, const int32_t **ret_seat)
{
    int n = control[DS_CONTROL_N];
    *ret_seat = control + DS_CONTROL_SEATS;
    if (n < 0 || n > max_n)
        return -1;
    for (int i = 0; i < n; i++)
        if ((*ret_seat)[i] < 0 || (*ret_seat)[i] >= S)
            return -1;
    return n;
}

/* ---- admit ---- */

static int cap_of(const ds_seat *q)
{
    int cap = q->n_draft < q->max_draft ? q->n_draft : q->max_draft, left = q->end - q->start - 2;
    cap = left < cap ? left : cap;
    return q->state != DS_SEAT_LIVE || cap < 0 ? 0 : cap;
}

static void survive(const ds_admit_args *a, const ds_seat *q, float *ret)
{
    float p = 1.0f;
    for (int k = 0; k < a->block; k++)
        ret[k] = p *= q->eager ? 1.0f : a->odds ? a->odds[k] : sigmoid(q->conf[k] * a->inv_temp[k]);
    if (q->state != DS_SEAT_LIVE || q->n_draft == 0)
        ret[0] = -1.0f;
}

/* Survivals never rise along a seat, so the best draft left is always the next one of some seat. Returns its
 * place in the list, -1 when none is left. */
static int best_next(const ds_admit_args *a, const int32_t *seat, int n)
{
    int best = -1;
    float most = 0;
    for (int i = 0; i < n; i++) {
        const ds_seat *q = &a->seat[seat[i]];
        if (q->n_verify >= cap_of(q))
            continue;
        float s = a->survival[(size_t)i * (size_t)a->block + (size_t)q->n_verify];
        if (s > most || (best >= 0 && s == most && q->n_verify < a->seat[seat[best]].n_verify)) {
            best = i;
            most = s;
        }
    }
    return best;
}

static void write_row(const ds_admit_args *a, int t, int32_t token, int32_t pos, int32_t slot, int32_t seat)
{
    a->token[t] = token;
    a->pos[t] = pos;
    a->slot[t] = slot;
    a->row_seat[t] = seat;
}

ds_code ds_cpu_admit(ds_backend *b, const ds_admit_args *a)
{
    (void)b;
    const int32_t *seat, *control = a->control;
    int n = listed(control, a->S, a->max_n < a->T ? a->max_n : a->T, &seat), live = 0, t = 0;
    if (n < 0 || a->block < 1 || a->block > DS_STEP_BLOCK)
        return DS_EINVAL;
    for (int i = 0; i < control[DS_CONTROL_PATCHES]; i++)
        a->page_table[seat[n + 2 * i]] = seat[n + 2 * i + 1];
    for (int i = 0; i < n; i++) {
        ds_seat *q = &a->seat[seat[i]];
        q->n_verify = 0;
        live += q->state == DS_SEAT_LIVE;
        survive(a, q, a->survival + (size_t)i * (size_t)a->block);
    }
    int budget = control[DS_CONTROL_BUDGET];
    budget = budget < a->T - live ? budget : a->T - live;
    for (int k = 0, i; k < budget && (i = best_next(a, seat, n)) >= 0; k++)
        a->seat[seat[i]].n_verify++;
    for (int i = 0; i < n; i++) {
        const ds_seat *q = &a->seat[seat[i]];
        a->first[i] = t;
        if (q->state != DS_SEAT_LIVE)
            continue;
        for (int j = 0; j <= q->n_verify; j++)
            write_row(a, t++, j ? q->draft[j - 1] : q->anchor, q->start + j, seat[i], seat[i]);
    }
    a->first[n] = t;
    for (; t < a->T; t++)
        write_row(a, t, 0, 0, a->S, -1);
    return DS_OK;
}

/* ---- draw ---- */

ds_code ds_cpu_draw(ds_backend *b, const ds_draw_args *a)
{
    ds_cpu *c = (ds_cpu *)b;
    if (a->R < 0 || a->V <= 0)
        return DS_EINVAL;
    size_t R = (size_t)a->R;
    ds_sample_row *row = ds_scratch_need(&c->shared, R * (sizeof *row + sizeof(ds_sample_out)) + 1);
    if (!row)
        return DS_ENOMEM;
    ds_sample_out *out = (ds_sample_out *)(void *)(row + R);
    for (size_t r = 0; r < R; r++) {
        row[r] = (ds_sample_row){.top_p = 1.0f, .repetition = 1.0f, .n_logprobs = -1, .given = -1};
        if (a->row_seat[r] >= a->S)
            return DS_EINVAL;
        if (a->row_seat[r] < 0)
            continue;
        const ds_seat *q = &a->seat[a->row_seat[r]];
        row[r].temperature = q->temperature;
        row[r].top_p = q->top_p;
        row[r].min_p = q->min_p;
        row[r].top_k = q->top_k;
        row[r].seed = q->seed;
        row[r].pos = (int64_t)a->row_pos[r] + a->ahead;
        row[r].banned = q->stop;
        row[r].n_banned = q->n_stop;
        row[r].banned_until = q->min_pos;
    }
    ds_code code = ds_cpu_sample(b, &(ds_sample_args){a->logits, a->R, a->V, row, out});
    for (size_t r = 0; code == DS_OK && r < R; r++)
        a->token[r] = a->row_seat[r] < 0 ? 0 : out[r].bad ? a->bad : out[r].token;
    return code;
}

/* ---- accept ---- */

static int stops(const ds_seat *q, int32_t token, int32_t pos)
{
    for (int i = 0; pos >= q->min_pos && i < q->n_stop; i++)
        if (q->stop[i] == token)
            return 1;
    return 0;
}

static void accept_seat(const ds_accept_args *a, ds_seat *q, const int32_t *drawn, int rows, ds_round_out *o)
{
    for (int j = 0, stands = 1; j < rows && stands && q->state == DS_SEAT_LIVE; j++) {
        int32_t y = drawn[j], pos = q->start + 1;
        stands = j < q->n_verify && y == q->draft[j];
        if (a->odds && j < q->n_verify) {
            stands = ds_rng_unit(ds_rng_u32(q->seed, DS_RNG_ACCEPT, (uint64_t)pos, 1)) < a->odds[j];
            y = stands ? q->draft[j] : y;
        }
        if (y < 0) {
            q->state = DS_SEAT_BAD;
            break;
        }
        o->token[o->n++] = q->anchor = y;
        o->n_accepted += stands;
        q->start = pos;
        if (stops(q, y, pos))
            q->state = DS_SEAT_STOPPED;
        else if (pos + 1 >= q->end)
            q->state = DS_SEAT_FULL;
    }
}

ds_code ds_cpu_accept(ds_backend *b, const ds_accept_args *a)
{
    (void)b;
    const int32_t *seat;
    int n = listed(a->control, a->S, a->max_n, &seat);
    if (n < 0 || a->block < 1 || a->block > DS_STEP_BLOCK)
        return DS_EINVAL;
    for (int i = 0; i < n; i++) {
        ds_seat *q = &a->seat[seat[i]];
        ds_round_out *o = &a->out[i];
        o->seat = seat[i];
        o->n_verify = q->n_verify;
        o->n = o->n_accepted = 0;
        memcpy(o->survival, a->survival + (size_t)i * (size_t)a->block,
               (size_t)a->block * sizeof *o->survival);
        accept_seat(a, q, a->drawn + a->first[i], a->first[i + 1] - a->first[i], o);
        o->state = q->state;
        q->n_draft = q->n_verify = 0;
    }
    return DS_OK;
}

/* ---- the draft pass ---- */

static int drafts(const ds_block_args *a, const ds_seat *q)
{
    return q->state == DS_SEAT_LIVE && q->max_draft > 0 && q->start + a->block <= a->max_len &&
           q->end - q->start > 2;
}

ds_code ds_cpu_block(ds_backend *b, const ds_block_args *a)
{
    (void)b;
    const int32_t *seat;
    int n = listed(a->control, a->S, INT32_MAX, &seat), g = a->block;
    if (n < 0 || a->R < 0 || g < 1 || g > DS_STEP_BLOCK || a->n_state < 0)
        return DS_EINVAL;
    for (int r = 0; r < a->R; r++) {
        const ds_seat *q = r < n ? &a->seat[seat[r]] : NULL;
        int there = q && drafts(a, q), start = there ? q->start : 0;
        a->row_seat[r] = there ? seat[r] : -1;
        a->anchor[r] = there ? q->anchor : 0;
        a->start[r] = start;
        for (int k = 0; k < g; k++) {
            int t = r * g + k;
            a->token[t] = k ? a->mask_token : a->anchor[r];
            a->pos[t] = start + k;
            a->limit[t] = start + g - 1;
            a->slot[t] = there ? seat[r] : a->S;
            a->order[k * a->R + r] = t;
        }
    }
    for (int i = 0; i < a->n_state; i++)
        a->state[i] = 0;
    return DS_OK;
}

ds_code ds_cpu_offer(ds_backend *b, const ds_offer_args *a)
{
    (void)b;
    if (a->R < 0 || a->block < 1 || a->block > DS_STEP_BLOCK)
        return DS_EINVAL;
    for (int r = 0; r < a->R; r++) {
        int s = a->row_seat[r];
        if (s >= a->S)
            return DS_EINVAL;
        for (int k = 0; s >= 0 && k < a->block; k++) {
            float z = a->conf ? a->conf[k * a->R + r] : 30.0f;
            a->seat[s].draft[k] = a->token[k * a->R + r];
            a->seat[s].conf[k] = z == z ? z : -30.0f;
        }
        if (s >= 0)
            a->seat[s].n_draft = a->block;
    }
    return DS_OK;
}
