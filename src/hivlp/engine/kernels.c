/* The inner loops of hivlp's engine: scoring packed codes, choosing lists, re-ranking rows.
 *
 * Plain C with a variant for each instruction set, chosen once at run time; `hivlp.engine.reference` says the same in
 * numpy and is what the tests compare with. Every score but the last is a sum of small integers, so that all variants
 * agree to the last bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"
#include "scoring.h"

static inline int32_t ordered(float value) {
    /* Floats as integers of the same order. */
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

typedef struct {
    const uint16_t *map;       /* (dims, fine_dim) float16: what a query looks like to the codes */
    const float *amplitude;    /* (dims) mean absolute residual, which a sign stands for */
    const float *step;         /* (dims) what one step of a nibble stands for, times the row's stretch */
    const uint8_t *keys;       /* blocks of 16 list keys */
    const float *key_bias;     /* (lists) */
    const uint8_t *group_keys; /* blocks of 16 keys of groups, a group being a block of list keys */
    const float *group_bias;   /* (groups) */
    const int8_t *centres;     /* (lists, dims) what the codes of a list are counted from */
    const int64_t *starts;     /* (lists + 1) first block of each list */
    const uint8_t *signs;      /* blocks of 32 codes, list after list */
    const uint8_t *factors;    /* 32 a block, in steps of factor_scale */
    const uint32_t *rows;      /* 32 a block: the row of each code, UINT32_MAX where there is none */
    const uint8_t *nibbles;    /* (rows) of dims / 2 bytes, the row's nearest list, and its stretch */
    const uint16_t *fine;      /* (rows, fine_dim) float16 */
    int64_t count;             /* of rows; a code of any other row is skipped */
    int64_t lists;
    int32_t dims;              /* a multiple of 16 */
    int32_t fine_dim;
    float key_scale;           /* what one step of a key stands for */
    float centre_scale;
    float factor_scale;
    float group_scale;
} engine;

typedef struct { int64_t lists, codes, nibbles, fine; } work_done;

static inline int passes(const uint8_t *allowed, uint32_t row) {
    return allowed == NULL || (allowed[row >> 3] >> (row & 7) & 1);
}

#define UNKNOWN INT32_MIN
#define TILE 4 /* queries that are projected together: to widen the map's float16 takes longer than the products */

/* All that is derived from one query, and the memory that a search needs. */
typedef struct {
    float *tile;       /* (TILE, dims) where this query lies, and the next ones */
    const float *z;    /* (dims) where this one lies */
    int8_t *small;     /* (dims) the same in steps of small_scale */
    int8_t *nibble;    /* (dims) z * step, in steps of nibble_scale */
    uint8_t *table;    /* (dims / 16, 128) */
    float *scores;     /* (groups) */
    candidate *order;  /* (lists) */
    pool p;
    uint32_t *seen;    /* (slots) a hash table of rows */
    int64_t slots;     /* a power of two */
    int32_t *dots;     /* (lists) products with their centres, or UNKNOWN */
    uint32_t *known;   /* the lists of those that are not */
    int64_t knowns;
    float small_scale, nibble_scale, table_unit;
    int32_t middle;    /* of the table's sums */
    int32_t nibble_middle; /* of twice the sums of nibbles */
    int borrows;       /* scores, order and seen are another's */
} scratch;

static void free_scratch(scratch *s) {
    free(s->tile); free(s->small); free(s->nibble); free(s->table); free(s->p.list); free(s->dots);
    free(s->known);
    if (!s->borrows) {
        free(s->scores); free(s->order); free(s->seen);
    }
}

/* Memory for one query at a time; what it needs only for a while is that of `with`, if there is one. */
static int make_scratch(scratch *s, const engine *e, int64_t shortlist, const scratch *with) {
    int64_t lanes = (e->lists + LANES - 1) / LANES * LANES + LANES;
    memset(s, 0, sizeof *s);
    s->tile = malloc((size_t)e->dims * TILE * sizeof(float));
    s->small = malloc((size_t)e->dims);
    s->nibble = calloc((size_t)e->dims + 64, 1);
    s->dots = malloc((size_t)e->lists * sizeof(int32_t));
    s->known = malloc((size_t)e->lists * sizeof(uint32_t));
    for (int64_t l = 0; s->dots && l < e->lists; l++) s->dots[l] = UNKNOWN;
    s->table = malloc((size_t)e->dims * 8 + 64);
    s->p.keep = shortlist;
    s->p.room = 8 * shortlist + SIGN_LANES;
    s->p.list = malloc((size_t)s->p.room * sizeof(candidate));
    for (s->slots = 64; s->slots < 2 * shortlist; s->slots *= 2) {}
    s->borrows = with != NULL;
    s->scores = with ? with->scores : malloc((size_t)lanes * sizeof(float));
    s->order = with ? with->order : malloc((size_t)lanes * sizeof(candidate));
    s->seen = with ? with->seen : malloc((size_t)s->slots * sizeof(uint32_t));
    return s->tile && s->small && s->nibble && s->table && s->scores && s->order && s->p.list && s->seen && s->dots && s->known;
}

static float to_small(const float *values, const float *weights, int count, int8_t *out) {
    float most = 1e-20f;
    for (int j = 0; j < count; j++) {
        float value = fabsf(weights ? values[j] * weights[j] : values[j]);
        if (value > most) most = value;
    }
    float factor = 127.0f / most;
    for (int j = 0; j < count; j++) out[j] = (int8_t)lrintf((weights ? values[j] * weights[j] : values[j]) * factor);
    return most / 127.0f;
}

/* Where each of `count` queries lies in the space of the codes, (count, dims). */
static void project(const engine *e, const float *queries, int64_t count, float *z) {
    for (int64_t i = 0; i < count;) {
        int many = count - i < TILE ? 1 : TILE;
        for (int j = 0; j < e->dims; j += 4) {
            float out[4 * TILE];
            (many == 1 ? use.four_halves : use.sixteen_halves)(e->map + (int64_t)j * e->fine_dim,
                                                               queries + i * e->fine_dim, e->fine_dim, out);
            for (int q = 0; q < many; q++) memcpy(z + (i + q) * e->dims + j, out + 4 * q, 4 * sizeof(float));
        }
        i += many;
    }
}

/* What rows are scored with. */
static void prepare_rows(scratch *s, const engine *e) {
    s->small_scale = to_small(s->z, NULL, e->dims, s->small);
    s->nibble_scale = to_small(s->z, e->step, e->dims, s->nibble) / 2;
    s->nibble_middle = 0;
    for (int j = 0; j < e->dims; j++) s->nibble_middle += 15 * s->nibble[j];
    while (s->knowns) s->dots[s->known[--s->knowns]] = UNKNOWN;
}

/* What lists are chosen and signs are scored with. */
static void prepare_lists(scratch *s, const engine *e) {
    float widest = 1e-20f;
    for (int g = 0; g < e->dims; g += 4) {
        float width = 0;
        for (int j = g; j < g + 4; j++) width += fabsf(s->z[j] * e->amplitude[j]);
        if (width > widest) widest = width;
    }
    s->table_unit = 2 * widest / 63.0f;
    float middle = 0;
    for (int g = 0; g < e->dims / 4; g++) {
        float t[4], width = 0;
        for (int j = 0; j < 4; j++) {
            t[j] = s->z[4 * g + j] * e->amplitude[4 * g + j];
            width += fabsf(t[j]);
        }
        middle += width;
        /* Groups 0 to 3 of 16 dimensions: low half of the first bytes, high half, low half of the second, high. */
        uint8_t *out = s->table + 128 * (g / 4) + 32 * (g % 4 / 2) + 64 * (g % 2);
        for (int code = 0; code < 16; code++) {
            float sum = width;
            for (int j = 0; j < 4; j++) sum += code >> j & 1 ? t[j] : -t[j];
            out[code] = out[16 + code] = (uint8_t)lrintf(sum / s->table_unit);
        }
    }
    s->middle = (int32_t)lrintf(middle / s->table_unit);
}

#define FIRST 8 /* of the lists, which are read in order of their scores: they raise the bar */

/* Keys with their biases, whose products with small integers are taken. */
typedef struct { const uint8_t *keys; const float *bias; float scale; int64_t count; } key_set;

/* Scores of the keys of one block; returns how many there are. */
static int score_keys(const key_set *k, int64_t block, const int8_t *small, int dims, int32_t shift, float unit, float *out) {
    int32_t sums[LANES];
    int64_t first = block * LANES;
    int lanes = (int)(k->count - first < LANES ? k->count - first : LANES);
    use.keys(k->keys + first * dims, small, dims / 4, sums);
    for (int l = 0; l < lanes; l++) out[l] = (float)(sums[l] - shift) * unit + k->bias[first + l];
    return lanes;
}

#define SPARE 2.0f /* how much less than the margin a group may be below the best one */

/* Lists worth reading: at most `most`, and none whose score is more than `margin` below the best. Only lists of groups that
 * may hold such are looked at. A few of the best come first, the others as they lie in memory. */
static int64_t choose_lists(scratch *s, const engine *e, int64_t most, float margin) {
    int64_t groups = (e->lists + LANES - 1) / LANES, seen = 0, chosen = 0;
    int32_t shift = 0;
    for (int j = 0; j < e->dims; j++) shift += s->small[j];
    shift *= 128;
    float best = -INFINITY, *score = s->scores, of_list[LANES];
    key_set lists = {e->keys, e->key_bias, e->key_scale, e->lists};
    key_set of_groups = {e->group_keys, e->group_bias, e->group_scale, groups};
    for (int64_t b = 0; b < groups; b += LANES)
        score_keys(&of_groups, b / LANES, s->small, e->dims, shift, s->small_scale * e->group_scale, score + b);
    for (int64_t g = 0; g < groups; g++) best = score[g] > best ? score[g] : best;
    float least = best - margin - SPARE;
    best = -INFINITY;
    for (int64_t g = 0; g < groups; g++) {
        if (!(score[g] >= least)) continue;
        int lanes = score_keys(&lists, g, s->small, e->dims, shift, s->small_scale * e->key_scale, of_list);
        for (int l = 0; l < lanes; l++) {
            best = of_list[l] > best ? of_list[l] : best;
            s->order[seen++] = (candidate){ordered(of_list[l]), (uint32_t)(g * LANES + l)};
        }
    }
    int32_t bar = ordered(best - margin);
    for (int64_t i = 0; i < seen; i++) {
        s->order[chosen] = s->order[i];
        chosen += s->order[i].score >= bar;
    }
    if (chosen > most) {
        keep_best(s->order, chosen, most);
        chosen = most;
    }
    for (int64_t first = 0; first < FIRST && first < chosen; first++) {
        int64_t top = first;
        for (int64_t c = first + 1; c < chosen; c++)
            if (rank_of(s->order[c]) > rank_of(s->order[top])) top = c;
        /* What lay before it moves up by one. */
        candidate one = s->order[top];
        memmove(s->order + first + 1, s->order + first, (size_t)(top - first) * sizeof(candidate));
        s->order[first] = one;
    }
    return chosen;
}

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
    prepare_rows(s, e);
    prepare_lists(s, e);
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
    prepare_rows(&s, e);
    for (int64_t i = 0; i < count; i++) s.p.list[i] = (candidate){0, which[i]};
    s.p.count = count;
    decide(&s, e, query, last, k, out_rows, out_scores, work);
    free_scratch(&s);
    return 0;
}

/* For each of `count` items, (count, dims) float32, its `copies` best lists by key score, best first, from the `most` best
 * groups. */
EXPORT int hivlp_assign(const uint8_t *keys, const float *bias, float key_scale, int64_t lists,
                        const uint8_t *group_keys, const float *group_bias, float group_scale, int64_t most, int dims,
                        const float *items, int64_t count, int copies, int32_t *out, float *out_scores) {
    int64_t groups = (lists + LANES - 1) / LANES;
    key_set all = {keys, bias, key_scale, lists}, of_groups = {group_keys, group_bias, group_scale, groups};
    candidate *order = malloc((size_t)groups * sizeof(candidate));
    int8_t *small = malloc((size_t)dims);
    if (!order || !small) { free(order); free(small); return -1; }
    for (int64_t g = 0; g < groups; g++) order[g].row = (uint32_t)g;
    for (int64_t i = 0; i < count; i++) {
        float unit = to_small(items + i * dims, NULL, dims, small), scores[LANES];
        int32_t shift = 0, filled = 0;
        for (int j = 0; j < dims; j++) shift += small[j];
        shift *= 128;
        if (most < groups) {
            for (int64_t b = 0; b < groups; b += LANES) {
                int lanes = score_keys(&of_groups, b / LANES, small, dims, shift, unit * group_scale, scores);
                for (int l = 0; l < lanes; l++) order[b + l] = (candidate){ordered(scores[l]), (uint32_t)(b + l)};
            }
            keep_best(order, groups, most);
        }
        int32_t *best = out + i * copies;
        float *best_score = out_scores + i * copies;
        for (int64_t g = 0; g < most && g < groups; g++) {
            int lanes = score_keys(&all, order[g].row, small, dims, shift, unit * key_scale, scores);
            for (int l = 0; l < lanes; l++) {
                if (filled == copies && !(scores[l] > best_score[copies - 1])) continue;
                int at = filled < copies ? filled++ : copies - 1;
                while (at > 0 && scores[l] > best_score[at - 1]) {
                    best_score[at] = best_score[at - 1];
                    best[at] = best[at - 1];
                    at--;
                }
                best_score[at] = scores[l];
                best[at] = (int32_t)(order[g].row * LANES) + l;
            }
        }
    }
    free(order);
    free(small);
    return 0;
}

#include "whole.h"
