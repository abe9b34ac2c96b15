/* Scan of inverted lists: sign codes prune, refinement codes rank. */
#pragma once
#include "routing.h"

#define LISTS_AHEAD 16 /* lists whose centroids are prefetched */
#define BLOCKS_AHEAD 8 /* blocks of sign codes that are prefetched */

static inline int nibble_bytes_of(const ivf_index *ivf) { return ivf->sign_dims / 2; }

static inline int pair_bytes_of(const ivf_index *ivf) { return (ivf->dims - ivf->sign_dims) / 4; }

static inline int64_t refine_bytes(const ivf_index *ivf) { return nibble_bytes_of(ivf) + pair_bytes_of(ivf) + 2; }

static inline const uint8_t *refine_code_at(const ivf_index *ivf, uint32_t position) {
    return ivf->refine_codes + position * refine_bytes(ivf);
}

/* Centroid's term of the scores of a list. */
static inline int32_t centroid_offset(const query_state *s, const ivf_index *ivf, int64_t list) {
    return steps_of((float)use.int8_dot(ivf->centroids + list * ivf->dims, s->query_int8, ivf->dims) * s->centroid_unit);
}

/* Refinement score of a code from its integer product. */
static inline int32_t refined_score(const query_state *s, const ivf_index *ivf, const uint8_t *code, int32_t product,
                                    int32_t offset) {
    uint16_t scale;
    memcpy(&scale, code + nibble_bytes_of(ivf) + pair_bytes_of(ivf), 2);
    return offset + steps_of((float)scale * ((float)(2 * product - s->refine_offset) * s->refine_unit));
}

static inline int32_t refine_score(const query_state *s, const ivf_index *ivf, uint32_t position, int32_t offset) {
    const uint8_t *code = refine_code_at(ivf, position);
    int32_t product = use.refine_dot(code, s->query_refine, nibble_bytes_of(ivf), pair_bytes_of(ivf));
    return refined_score(s, ivf, code, product, offset);
}

/* Score the refinement codes that have waited longest, TOGETHER at most. A code counts for its refinement score, but for no
 * more than its sign score with slack: a code that was pruned would not have been kept, so that what is kept does not depend
 * on the order in which codes come. */
static inline void score_pending(query_state *s, const ivf_index *ivf) {
    pending_code one[TOGETHER];
    const uint8_t *codes[TOGETHER];
    int32_t products[TOGETHER];
    int many = s->pushed - s->scored < TOGETHER ? (int)(s->pushed - s->scored) : TOGETHER;
    for (int i = 0; i < TOGETHER; i++) {
        one[i] = s->pending[(s->scored + (i < many ? i : 0)) % PENDING];
        codes[i] = refine_code_at(ivf, one[i].position);
    }
    s->scored += many;
    s->refine_scored += many;
    use.refine_dot4(codes, s->query_refine, nibble_bytes_of(ivf), pair_bytes_of(ivf), products);
    for (int i = 0; i < many; i++) {
        int32_t score = refined_score(s, ivf, codes[i], products[i], one[i].offset);
        score = score < one[i].most ? score : one[i].most;
        if (score < s->top.threshold) continue;
        offer(&s->top, score, one[i].position);
        if (s->top.shift >= 0) raise_threshold(&s->top);
    }
}

/* Queue a code for its refinement score, and prefetch its refinement code. */
static inline void push_pending(query_state *s, const ivf_index *ivf, uint32_t position, int32_t offset, int32_t most) {
    if (most < s->top.threshold) return; /* it rose since this run was scanned */
    if (s->pushed - s->scored == PENDING) score_pending(s, ivf);
    prefetch(refine_code_at(ivf, position), refine_bytes(ivf));
    s->pending[s->pushed++ % PENDING] = (pending_code){position, offset, most};
}

/* Probes to be scanned, and how far they have been prefetched. */
typedef struct { const probe *probes; int64_t count, at, block; } stream;

/* Prefetch so many blocks more. */
static inline void read_ahead(stream *soon, const ivf_index *ivf, int64_t blocks) {
    int64_t width = ivf->sign_dims / 16 * 64;
    while (blocks-- > 0 && soon->at < soon->count) {
        probe of = soon->probes[soon->at];
        int64_t block = ivf->list_offsets[of.list] + soon->block;
        prefetch_far(ivf->sign_codes + block * width, width);
        prefetch_far(ivf->sign_scales + block * CODE_LANES, 1);
        if (++soon->block < of.blocks) continue;
        if (block + 1 == ivf->list_offsets[of.list + 1]) prefetch_far(ivf->row_ids + block * CODE_LANES, 1);
        soon->at++;
        soon->block = 0;
    }
}

/* Start prefetching probes, none of them empty. */
static inline stream stream_of(const probe *probes, int64_t count, const ivf_index *ivf) {
    stream soon = {probes, count, 0, 0};
    read_ahead(&soon, ivf, BLOCKS_AHEAD);
    return soon;
}

/* Scan one list for up to TOGETHER queries, each to the end of its own probe; the longest probe comes first. `soon`, unless
 * NULL, is prefetched meanwhile. */
static void scan_list(query_state *const *all, const probe *probes, int many, const ivf_index *ivf, stream *soon,
                      const uint8_t *allowed) {
    int32_t most[TOGETHER];
    sign_query sign_queries[TOGETHER];
    hits found[TOGETHER];
    int64_t list = probes[0].list, first = ivf->list_offsets[list], end = ivf->list_offsets[list + 1];
    int64_t groups = ivf->sign_dims / 16;
    for (int q = 0; q < many; q++) {
        const query_state *s = all[q];
        most[q] = (s->lut_offset + s->sign_slack) * 255;
        sign_queries[q] = (sign_query){s->lut, (int16_t)(s->lut_offset - s->sign_slack), 0};
    }
    for (int64_t b = 0; b < probes[0].blocks; b += RUN_BLOCKS) {
        int64_t left = probes[0].blocks - b, at = first + b;
        block_run run = {ivf->sign_codes + at * groups * 64, ivf->sign_scales + at * CODE_LANES,
                         left < RUN_BLOCKS ? left : RUN_BLOCKS};
        if (soon) read_ahead(soon, ivf, run.count);
        while (probes[many - 1].blocks <= b) many--;
        for (int q = 0; q < many; q++) {
            int64_t threshold = (int64_t)all[q]->top.threshold - probes[q].offset;
            threshold = threshold > most[q] ? most[q] + 1 : threshold;
            sign_queries[q].threshold = threshold < -LEAST ? -LEAST : (int32_t)threshold;
        }
        use.sign_scan(&run, sign_queries, many, (int)groups, found);
        const uint32_t *rows = ivf->row_ids + at * CODE_LANES;
        int look = allowed != NULL || at + RUN_BLOCKS >= end; /* only the last block has empty lanes */
        for (int q = 0; q < many; q++) {
            uint32_t own = (uint32_t)(probes[q].blocks - b < RUN_BLOCKS ? probes[q].blocks - b : RUN_BLOCKS) * CODE_LANES;
            for (int i = 0; i < found[q].count && found[q].of[i].at < own; i++) {
                hit one = found[q].of[i];
                if (!look || (rows[one.at] < ivf->count && passes(allowed, rows[one.at])))
                    push_pending(all[q], ivf, (uint32_t)(at * CODE_LANES) + one.at, probes[q].offset,
                                 probes[q].offset + one.score);
            }
        }
    }
}

/* Scan the best lists to their end, and set s->probes for the others; returns how many.
 *
 * A probe ends where no code is long enough: it would have to lie so many standard deviations above its centroid to reach the
 * threshold. These are `margin` for a list that the router scores like the best, half as many for one at the margin. */
static int64_t probe_best_lists(query_state *s, const ivf_index *ivf, int64_t chosen, float margin,
                                const uint8_t *allowed, search_stats *stats) {
    int64_t few = chosen < WHOLE_LISTS ? chosen : WHOLE_LISTS, count = 0, blocks = 0;
    for (int64_t c = 0; c < few; c++) prefetch(ivf->centroids + (int64_t)s->ranking[c].row * ivf->dims, ivf->dims);
    for (int64_t c = 0; c < few; c++) {
        int64_t list = s->ranking[c].row;
        int64_t size = ivf->list_offsets[list + 1] - ivf->list_offsets[list];
        s->probes[count] = (probe){list, (int32_t)size, centroid_offset(s, ivf, list)};
        blocks += s->probes[count].blocks;
        count += s->probes[count].blocks > 0;
    }
    stream soon = stream_of(s->probes, count, ivf);
    for (int64_t c = 0; c < count; c++) scan_list(&s, s->probes + c, 1, ivf, &soon, allowed);
    count = 0;
    while (s->scored < s->pushed) score_pending(s, ivf);
    if (chosen > few) settle_exactly(&s->top);
    int64_t threshold = s->top.threshold;
    for (int64_t c = few; c < chosen; c++) {
        int64_t list = s->ranking[c].row;
        if (c + LISTS_AHEAD < chosen) {
            int64_t soon = s->ranking[c + LISTS_AHEAD].row;
            prefetch(ivf->centroids + soon * ivf->dims, ivf->dims);
            __builtin_prefetch(ivf->max_sign_scales + ivf->list_offsets[soon]);
        }
        float deviations = margin - (s->best_list - list_score(s->ranking[c])) * 0.5f;
        int32_t offset = centroid_offset(s, ivf, list);
        s->probes[count] = (probe){list, blocks_in_reach(s, ivf, list, threshold - offset, deviations), offset};
        blocks += s->probes[count].blocks;
        count += s->probes[count].blocks > 0;
    }
    stats->lists += few + count;
    stats->sign_codes += blocks * CODE_LANES;
    return count;
}
