/* The inner loops of hivlp's engine: scoring packed codes, choosing lists, re-ranking rows.
 *
 * Plain C with a variant for each instruction set, chosen once at run time; `hivlp.engine.reference` says the same in
 * numpy and is what the tests compare with. Scores of codes are sums of small integers, and what is made of these is
 * float32 in a fixed order, so that all variants agree to the last bit but for the last scores, those of float16
 * vectors.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"
#include "query.h"
#include "routing.h"
#include "scoring.h"

static inline void prefetch(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
    __builtin_prefetch((const char *)from + bytes - 1);
}

/* Ask memory for the block that is `ahead` of the first of a list, if the list has so many. */
static inline void prefetch_block(const engine *e, int64_t list, int64_t ahead) {
    int64_t block = e->starts[list] + ahead;
    if (block >= e->starts[list + 1]) return;
    prefetch(e->signs + block * (e->dims / 16) * 64, e->dims / 16 * 64);
    __builtin_prefetch(e->factors + block * SIGN_LANES);
}

/* What is asked for before it is needed, since lists are too short for the processor to see a pattern. */
#define AHEAD 2      /* blocks of signs */
#define FINE_AHEAD 2 /* float16 rows */

static inline int32_t dot_of(scratch *s, const engine *e, uint32_t list) {
    if (s->dots[list] == UNKNOWN) {
        s->dots[list] = use.bytes(e->centres + (int64_t)list * e->dims, s->small, e->dims);
        s->known[s->knowns++] = list;
    }
    return s->dots[list];
}

/* Offer the codes of one list to some queries, SIDE at most; `next` is the list to be read after it, or -1. */
static void scan_list(scratch *const *all, int many, const engine *e, int64_t list, int64_t next,
                      const uint8_t *allowed) {
    int32_t offset[SIDE], most[SIDE], scores[SIDE * SIGN_LANES];
    uint32_t masks[SIDE];
    asker askers[SIDE];
    int groups = e->dims / 16;
    int64_t first = e->starts[list], end = e->starts[list + 1];
    for (int q = 0; q < many; q++) {
        scratch *s = all[q];
        int32_t dot = dot_of(s, e, (uint32_t)list);
        float unit = s->table_unit * e->factor_scale;
        offset[q] = (int32_t)lrintf((float)dot * (s->small_scale * e->centre_scale / unit));
        most[q] = s->middle * 255;
        askers[q] = (asker){s->table, (int16_t)s->middle, 0};
    }
    if (next >= 0) prefetch(e->centres + next * e->dims, e->dims);
    if (end > first) __builtin_prefetch(e->rows + (end - 1) * SIGN_LANES);
    for (int64_t b = first; b < end; b++) {
        if (b + AHEAD < end) prefetch_block(e, list, b + AHEAD - first);
        else if (next >= 0) prefetch_block(e, next, b + AHEAD - end);
        int reachable = 0;
        for (int q = 0; q < many; q++) {
            int64_t bar = (int64_t)all[q]->p.bar - offset[q];
            reachable += bar <= most[q];
            askers[q].bar = bar > most[q] ? most[q] + 1 : bar < -most[q] ? -most[q] : (int32_t)bar;
        }
        if (!reachable) return; /* no code of this list is so good */
        use.side(e->signs + b * groups * 64, e->factors + b * SIGN_LANES, askers, many, groups, scores, masks);
        const uint32_t *rows = e->rows + b * SIGN_LANES;
        int look = allowed != NULL || b + 1 == end; /* only the last block has empty places */
        for (int q = 0; q < many; q++) {
            pool *p = &all[q]->p;
            for (uint32_t mask = masks[q]; mask; mask &= mask - 1) {
                int v = __builtin_ctz(mask);
                if (!look || (rows[v] < e->count && passes(allowed, rows[v])))
                    offer(p, offset[q] + scores[SIGN_LANES * q + v], (uint32_t)(b * SIGN_LANES + v));
            }
            if (p->shift >= 0) raise_bar(p);
        }
    }
}

/* From the places of codes to the rows that they are of, each once. */
static void resolve(scratch *s, const engine *e) {
    candidate *list = s->p.list;
    int64_t count = 0, places = (e->starts[e->lists]) * SIGN_LANES;
    settle(&s->p);
    memset(s->seen, 0xff, (size_t)s->slots * sizeof(uint32_t));
    for (int64_t i = 0; i < s->p.count; i++) {
        if (i + 16 < s->p.count) __builtin_prefetch(e->rows + list[i + 16].row);
        uint32_t row = (int64_t)list[i].row < places ? e->rows[list[i].row] : UINT32_MAX;
        if (row >= e->count) continue;
        uint64_t slot = (row * 0x9e3779b97f4a7c15u >> 32) & (uint64_t)(s->slots - 1);
        while (s->seen[slot] != UINT32_MAX && s->seen[slot] != row) slot = (slot + 1) & (uint64_t)(s->slots - 1);
        if (s->seen[slot] == row) continue;
        s->seen[slot] = row;
        list[count].score = list[i].score;
        list[count++].row = row;
    }
    s->p.count = count;
}

/* What a row's nibbles say of its product with the query, but for the same constant for all rows. */
static inline int32_t refined(scratch *s, const engine *e, const uint8_t *row) {
    uint32_t home;
    float stretch;
    memcpy(&home, row + e->dims / 2, 4);
    memcpy(&stretch, row + e->dims / 2 + 4, 4);
    if (home >= e->lists) return INT32_MIN; /* damaged */
    int32_t sum = 2 * use.nibbles(row, s->nibble, e->dims / 2) - s->nibble_middle;
    float of_list = (float)dot_of(s, e, home) * (s->small_scale * e->centre_scale);
    return ordered(of_list + stretch * ((float)sum * s->nibble_scale));
}

/* From candidate rows, each there once, to the best `k`: nibbles choose `last`, whose fine vectors decide. */
static void decide(scratch *s, const engine *e, const float *query, int64_t last, int64_t k, int64_t *out_rows,
                   float *out_scores, work_done *work) {
    candidate *list = s->p.list;
    int64_t count = s->p.count, width = e->dims / 2 + 8;
    if (count > last) {
        for (int64_t i = 0; i < count; i++) {
            if (i + 12 < count) prefetch(e->nibbles + list[i + 12].row * width, width);
            list[i].score = refined(s, e, e->nibbles + list[i].row * width);
        }
        work->nibbles += count;
        keep_best(list, count, last);
        count = last;
    }
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i + FINE_AHEAD < count)
            prefetch(e->fine + (int64_t)list[i + FINE_AHEAD].row * e->fine_dim, (int64_t)e->fine_dim * 2);
        float score = use.half(e->fine + (int64_t)list[i].row * e->fine_dim, query, e->fine_dim);
        int64_t row = list[i].row;
        if (found == k && !(score > out_scores[k - 1] || (score == out_scores[k - 1] && row < out_rows[k - 1]))) continue;
        int64_t at = found < k ? found++ : k - 1;
        while (at > 0 && (score > out_scores[at - 1] || (score == out_scores[at - 1] && row < out_rows[at - 1]))) {
            out_scores[at] = out_scores[at - 1];
            out_rows[at] = out_rows[at - 1];
            at--;
        }
        out_scores[at] = score;
        out_rows[at] = row;
    }
    work->fine += count;
    for (int64_t at = found; at < k; at++) {
        out_rows[at] = -1;
        out_scores[at] = -INFINITY;
    }
}

/* From where a query lies to the lists that it wants, in s->order; returns how many. */
static int64_t begin(scratch *s, const engine *e, int64_t most, float margin, work_done *work) {
    prepare_small(s, e);
    prepare_nibbles(s, e);
    prepare_signs(s, e);
    empty_pool(&s->p);
    int64_t chosen = choose_lists(s, e, most, margin);
    work->lists += chosen;
    for (int64_t c = 0; c < chosen; c++)
        work->codes += (e->starts[s->order[c].row + 1] - e->starts[s->order[c].row]) * SIGN_LANES;
    return chosen;
}

#include "together.h"

/* The best rows of each of `count` queries, (count, fine_dim) float32.
 *
 * most, margin: which lists are read (see choose_lists). shortlist: how many the signs hand on; last: how many the
 * nibbles hand on. allowed: a bit a row, or NULL. Places for which there is no row get -1 and -inf. Returns 0, or -1
 * without memory.
 */
EXPORT int hivlp_search(const engine *e, const float *queries, int64_t count, int64_t most, float margin,
                        int64_t shortlist, int64_t last, int64_t k, const uint8_t *allowed, int64_t *out_rows,
                        float *out_scores, work_done *work) {
    if (count >= ENOUGH)
        return search_together(e, queries, count, most, margin, shortlist, last, k, allowed, out_rows, out_scores,
                               work);
    scratch s, *one = &s;
    if (!make_scratch(&s, e, shortlist, NULL)) {
        free_scratch(&s);
        return -1;
    }
    for (int64_t i = 0; i < count; i++) {
        const float *query = queries + i * e->fine_dim;
        if (i % TILE == 0) project(e, query, count - i < TILE ? count - i : TILE, s.tile);
        s.z = s.tile + i % TILE * e->dims;
        int64_t chosen = begin(&s, e, most, margin, work);
        for (int64_t c = 0; c < chosen; c++)
            scan_list(&one, 1, e, s.order[c].row, c + 1 < chosen ? (int64_t)s.order[c + 1].row : -1, allowed);
        resolve(&s, e);
        decide(&s, e, query, last, k, out_rows + i * k, out_scores + i * k, work);
    }
    free_scratch(&s);
    return 0;
}

/* The best of the given rows: the cascade without the lists, for a filter that few rows pass. */
EXPORT int hivlp_search_rows(const engine *e, const float *query, const uint32_t *which, int64_t count, int64_t last,
                             int64_t k, int64_t *out_rows, float *out_scores, work_done *work) {
    scratch s;
    if (!make_scratch(&s, e, count > 0 ? count : 1, NULL)) {
        free_scratch(&s);
        return -1;
    }
    project(e, query, 1, s.tile);
    s.z = s.tile;
    prepare_small(&s, e);
    prepare_nibbles(&s, e);
    for (int64_t i = 0; i < count; i++) s.p.list[i] = (candidate){0, which[i]};
    s.p.count = count;
    decide(&s, e, query, last, k, out_rows, out_scores, work);
    free_scratch(&s);
    return 0;
}

#include "whole.h"
