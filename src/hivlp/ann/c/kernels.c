/* The inner loops of hivlp's engine: scoring packed codes, choosing lists, re-ranking rows.
 *
 * Plain C with a variant for each instruction set, chosen once at run time; `hivlp.ann.reference` says the same in
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

#define LISTS_AHEAD 16 /* lists whose centres memory is asked for before they are needed */
#define BLOCKS_AHEAD 8 /* of signs, likewise */
#define FINE_AHEAD 8   /* float16 rows, likewise */
#define ENDS_AHEAD 128 /* float16 rows whose ends are asked for: on which page one is takes longer to find than its bytes */

static inline int half_of(const engine *e) { return e->signed_dims / 2; }

static inline int quarter_of(const engine *e) { return (e->dims - e->signed_dims) / 4; }

static inline int64_t width_of(const engine *e) { return half_of(e) + quarter_of(e) + 2; }

static inline const uint8_t *nibbles_at(const engine *e, uint32_t place) { return e->nibbles + place * width_of(e); }

static inline int32_t offset_of(const scratch *s, const engine *e, int64_t list) {
    return steps_of((float)use.bytes(e->centres + list * e->dims, s->small, e->dims) * s->centre_unit);
}

/* What a code's nibbles, whose sum of products this is, say of its product with the query, but for the same constant for
 * all codes. */
static inline int32_t stretched(const scratch *s, const engine *e, const uint8_t *nibbles, int32_t sum, int32_t offset) {
    uint16_t stretch;
    memcpy(&stretch, nibbles + half_of(e) + quarter_of(e), 2);
    return offset + steps_of((float)stretch * ((float)(2 * sum - s->nibble_middle) * s->nibble_unit));
}

static inline int32_t refined(const scratch *s, const engine *e, uint32_t place, int32_t offset) {
    const uint8_t *nibbles = nibbles_at(e, place);
    return stretched(s, e, nibbles, use.nibbles(nibbles, s->nibble, half_of(e), quarter_of(e)), offset);
}

/* Score the codes that have waited longest, TAKEN at most. What one counts for is what its nibbles say, but no more than
 * its signs let it: so a code that never came here, since that was below the bar, would not have been kept, and what is
 * kept does not depend on the order in which codes come. */
static inline void take(scratch *s, const engine *e) {
    waiting one[TAKEN];
    const uint8_t *rows[TAKEN];
    int32_t sums[TAKEN];
    int many = s->put - s->taken < TAKEN ? (int)(s->put - s->taken) : TAKEN;
    for (int i = 0; i < TAKEN; i++) {
        one[i] = s->ring[(s->taken + (i < many ? i : 0)) % WAITING];
        rows[i] = nibbles_at(e, one[i].place);
    }
    s->taken += many;
    s->refined += many;
    use.four_nibbles(rows, s->nibble, half_of(e), quarter_of(e), sums);
    for (int i = 0; i < many; i++) {
        int32_t score = stretched(s, e, rows[i], sums[i], one[i].offset);
        score = score < one[i].most ? score : one[i].most;
        if (score < s->p.bar) continue;
        offer(&s->p, score, one[i].place);
        if (s->p.shift >= 0) raise_bar(&s->p);
    }
}

/* Have a code scored soon, when memory has brought its nibbles. */
static inline void put(scratch *s, const engine *e, uint32_t place, int32_t offset, int32_t most) {
    if (most < s->p.bar) return; /* it went up since this part of the list was read */
    if (s->put - s->taken == WAITING) take(s, e);
    prefetch(nibbles_at(e, place), width_of(e));
    s->ring[s->put++ % WAITING] = (waiting){place, offset, most};
}

/* What is going to be read, and how far memory has been asked for it. */
typedef struct { const part *parts; int64_t count, at, block; } stream;

/* Have so many blocks more on their way. */
static inline void read_ahead(stream *soon, const engine *e, int64_t blocks) {
    int64_t width = e->signed_dims / 16 * 64;
    while (blocks-- > 0 && soon->at < soon->count) {
        part of = soon->parts[soon->at];
        int64_t block = e->starts[of.list] + soon->block;
        prefetch_far(e->signs + block * width, width);
        prefetch_far(e->factors + block * SIGN_LANES, 1);
        if (++soon->block < of.blocks) continue;
        if (block + 1 == e->starts[of.list + 1]) prefetch_far(e->rows + block * SIGN_LANES, 1);
        soon->at++;
        soon->block = 0;
    }
}

/* Begin to read some parts of lists, none of them empty. */
static inline stream stream_of(const part *parts, int64_t count, const engine *e) {
    stream soon = {parts, count, 0, 0};
    read_ahead(&soon, e, BLOCKS_AHEAD);
    return soon;
}

/* Offer the codes of one list to some queries, SIDE at most: to each those of its own `parts`, the longest of which comes
 * first. `soon`, if there is one, is of what is read after them. */
static void scan_list(scratch *const *all, const part *parts, int many, const engine *e, stream *soon,
                      const uint8_t *allowed) {
    int32_t most[SIDE];
    asker askers[SIDE];
    hits found[SIDE];
    int64_t list = parts[0].list, first = e->starts[list], end = e->starts[list + 1], groups = e->signed_dims / 16;
    for (int q = 0; q < many; q++) {
        const scratch *s = all[q];
        most[q] = (s->middle + s->spare) * 255;
        askers[q] = (asker){s->table, (int16_t)(s->middle - s->spare), 0};
    }
    for (int64_t b = 0; b < parts[0].blocks; b += RUN) {
        int64_t left = parts[0].blocks - b, at = first + b;
        run now = {e->signs + at * groups * 64, e->factors + at * SIGN_LANES, left < RUN ? left : RUN};
        if (soon) read_ahead(soon, e, now.count);
        while (parts[many - 1].blocks <= b) many--;
        for (int q = 0; q < many; q++) {
            int64_t bar = (int64_t)all[q]->p.bar - parts[q].offset;
            askers[q].bar = bar > most[q] ? most[q] + 1 : bar < -LEAST ? -LEAST : (int32_t)bar;
        }
        use.run(&now, askers, many, (int)groups, found);
        const uint32_t *rows = e->rows + at * SIGN_LANES;
        int look = allowed != NULL || at + RUN >= end; /* only the last block has empty places */
        for (int q = 0; q < many; q++) {
            uint32_t own = (uint32_t)(parts[q].blocks - b < RUN ? parts[q].blocks - b : RUN) * SIGN_LANES;
            for (int i = 0; i < found[q].count && found[q].of[i].at < own; i++) {
                hit one = found[q].of[i];
                if (!look || (rows[one.at] < e->count && passes(allowed, rows[one.at])))
                    put(all[q], e, (uint32_t)(at * SIGN_LANES) + one.at, parts[q].offset, parts[q].offset + one.score);
            }
        }
    }
}

/* Read the few best lists, and say in s->parts what to read of the others; returns of how many.
 *
 * A list's codes are read as far as they are long enough: so that they would be among the best so far if they were so many
 * standard deviations better than their centre. As many as the margin for a list that the router likes as much as the
 * best one, half as many for one that is a margin behind. */
static int64_t read_first(scratch *s, const engine *e, int64_t chosen, float margin, const uint8_t *allowed,
                          work_done *work) {
    int64_t few = chosen < FIRST ? chosen : FIRST, count = 0, blocks = 0;
    for (int64_t c = 0; c < few; c++) prefetch(e->centres + (int64_t)s->order[c].row * e->dims, e->dims);
    for (int64_t c = 0; c < few; c++) {
        int64_t list = s->order[c].row;
        s->parts[count] = (part){list, (int32_t)(e->starts[list + 1] - e->starts[list]), offset_of(s, e, list)};
        blocks += s->parts[count].blocks;
        count += s->parts[count].blocks > 0;
    }
    stream soon = stream_of(s->parts, count, e);
    for (int64_t c = 0; c < count; c++) scan_list(&s, s->parts + c, 1, e, &soon, allowed);
    count = 0;
    while (s->taken < s->put) take(s, e);
    if (chosen > few) settle_exactly(&s->p);
    int64_t bar = s->p.bar;
    for (int64_t c = few; c < chosen; c++) {
        int64_t list = s->order[c].row;
        if (c + LISTS_AHEAD < chosen) {
            int64_t soon = s->order[c + LISTS_AHEAD].row;
            prefetch(e->centres + soon * e->dims, e->dims);
            __builtin_prefetch(e->heads + e->starts[soon]);
        }
        float deviations = margin - (s->best - said_of(s->order[c])) * 0.5f;
        int32_t offset = offset_of(s, e, list);
        s->parts[count] = (part){list, blocks_within(s, e, list, bar - offset, deviations), offset};
        blocks += s->parts[count].blocks;
        count += s->parts[count].blocks > 0;
    }
    work->lists += few + count;
    work->codes += blocks * SIGN_LANES;
    return count;
}

/* From the places of codes to the rows that they are of, each once. */
static void resolve(scratch *s, const engine *e) {
    candidate *list = s->p.list;
    int64_t count = 0;
    memset(s->seen, 0xff, (size_t)s->slots * sizeof(uint32_t));
    for (int64_t i = 0; i < s->p.count; i++) __builtin_prefetch(e->rows + list[i].row);
    for (int64_t i = 0; i < s->p.count; i++) {
        uint32_t row = e->rows[list[i].row];
        if (row >= e->count) continue;
        uint64_t slot = (row * 0x9e3779b97f4a7c15u >> 32) & (uint64_t)(s->slots - 1);
        while (s->seen[slot] != UINT32_MAX && s->seen[slot] != row) slot = (slot + 1) & (uint64_t)(s->slots - 1);
        if (s->seen[slot] == row) continue;
        s->seen[slot] = row;
        list[count++].row = row;
    }
    s->p.count = count;
}

static inline void prefetch_ends(const engine *e, int64_t row) {
    __builtin_prefetch(e->fine + row * e->fine_dim);
    __builtin_prefetch(e->fine + (row + 1) * e->fine_dim - 1);
}

/* From candidate rows, each there once, to the best `k` by their fine vectors. */
static void decide(const scratch *s, const engine *e, const float *query, int64_t k, int64_t *out_rows,
                   float *out_scores, work_done *work) {
    const candidate *list = s->p.list;
    int64_t count = s->p.count, found = 0;
    for (int64_t i = 0; i < count && i < ENDS_AHEAD; i++) prefetch_ends(e, list[i].row);
    for (int64_t i = 0; i < count; i++) {
        if (i + ENDS_AHEAD < count) prefetch_ends(e, list[i + ENDS_AHEAD].row);
        if (i + FINE_AHEAD < count)
            prefetch_far(e->fine + (int64_t)list[i + FINE_AHEAD].row * e->fine_dim, (int64_t)e->fine_dim * 2);
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

/* When a query's lists have been read: what is left to do. */
static void finish(scratch *s, const engine *e, const float *query, int64_t k, int64_t *out_rows, float *out_scores,
                   work_done *work) {
    while (s->taken < s->put) take(s, e);
    work->nibbles += s->refined;
    settle_exactly(&s->p);
    resolve(s, e);
    decide(s, e, query, k, out_rows, out_scores, work);
}

/* From a query to the parts of lists that it wants, in s->parts, the best ones having been read; returns how many. */
static int64_t begin(scratch *s, const engine *e, const float *query, const effort *how, int64_t wanted,
                     const uint8_t *allowed, work_done *work) {
    prepare_small(s, e);
    prepare_codes(s, e, query, how);
    empty_pool(&s->p, wanted, s->window);
    s->put = s->taken = s->refined = 0;
    return read_first(s, e, choose_lists(s, e, how->lists, how->margin), how->margin, allowed, work);
}

#include "together.h"

/* How long an `engine` is here: whoever has another idea of it must not use this. */
EXPORT int hivlp_engine_bytes(void) { return (int)sizeof(engine); }

/* The best rows of each of `count` queries, (count, fine_dim) float32.
 *
 * wanted: codes among which there are `k` rows, at most as many as are handed on. allowed: a bit a row, or NULL. Places for
 * which there is no row get -1 and -inf. Returns 0, or -1 without memory, or where a number is less than one.
 */
EXPORT int hivlp_search(const engine *e, const float *queries, int64_t count, const effort *how, int64_t wanted,
                        int64_t k, const uint8_t *allowed, int64_t *out_rows, float *out_scores, work_done *work) {
    if (k < 1 || wanted < 1 || how->last < wanted || how->last > MOST_KEPT || how->lists < 1) return -1;
    if (count >= ENOUGH)
        return search_together(e, queries, count, how, wanted, k, allowed, out_rows, out_scores, work);
    scratch s, *one = &s;
    if (!make_scratch(&s, e, how->last, NULL)) {
        free_scratch(&s);
        return -1;
    }
    for (int64_t i = 0; i < count; i++) {
        const float *query = queries + i * e->fine_dim;
        if (i % TILE == 0) project(e, query, count - i < TILE ? count - i : TILE, s.tile);
        s.z = s.tile + i % TILE * e->dims;
        int64_t parts = begin(&s, e, query, how, wanted, allowed, work);
        stream soon = stream_of(s.parts, parts, e);
        for (int64_t c = 0; c < parts; c++) scan_list(&one, s.parts + c, 1, e, &soon, allowed);
        finish(&s, e, query, k, out_rows + i * k, out_scores + i * k, work);
    }
    free_scratch(&s);
    return 0;
}

/* The best of the given rows: the cascade without the lists, for a filter that few rows pass.
 *
 * places, lists: of each row, where one of its codes is, and the list that this is in.
 */
EXPORT int hivlp_search_rows(const engine *e, const float *query, const uint32_t *which, const uint32_t *places,
                             const uint32_t *lists, int64_t count, int64_t last, int64_t k, int64_t *out_rows,
                             float *out_scores, work_done *work) {
    scratch s;
    if (k < 1 || last < 1 || count > MOST_KEPT) return -1;
    if (!make_scratch(&s, e, count > 0 ? count : 1, NULL)) {
        free_scratch(&s);
        return -1;
    }
    candidate *list = s.p.list;
    project(e, query, 1, s.tile);
    s.z = s.tile;
    prepare_small(&s, e);
    prepare_codes(&s, e, query, &(effort){0});
    for (int64_t i = 0; i < count; i++) list[i] = (candidate){0, (uint32_t)i};
    if (count > last) {
        for (int64_t i = 0; i < count; i++) {
            if (i + WAITING < count) prefetch(nibbles_at(e, places[i + WAITING]), width_of(e));
            list[i].score = refined(&s, e, places[i], offset_of(&s, e, lists[i]));
        }
        work->nibbles += count;
        keep_best(list, count, last);
        count = last;
    }
    for (int64_t i = 0; i < count; i++) list[i].row = which[list[i].row];
    s.p.count = count;
    decide(&s, e, query, k, out_rows, out_scores, work);
    free_scratch(&s);
    return 0;
}

#include "whole.h"
