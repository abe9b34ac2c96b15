/* Small collections: a byte a dimension of all rows, without lists; a part of kernels.c.
 *
 * Choosing lists, and then a few of what many signs let pass, takes longer than to read all rows, if only they lie as
 * the keys of lists do, 16 rows a block, so that nothing is left to add up across a vector's dimensions.
 */
#pragma once

#define READERS 8 /* queries that read a part of the codes while it is close to the processor */
#define PART 16   /* blocks of such a part */

/* Offer the rows of some blocks of codes. */
static void read_blocks(scratch *s, const engine *e, const uint8_t *codes, int64_t first, int64_t end,
                        const uint8_t *allowed) {
    int32_t sums[LANES];
    for (int64_t b = first; b < end; b++) {
        use.keys(codes + b * e->dims * LANES, s->small, e->dims / 4, sums);
        int32_t most = INT32_MIN;
        for (int v = 0; v < LANES; v++) most = sums[v] > most ? sums[v] : most;
        if (most < s->p.bar) continue;
        for (int v = 0; v < LANES; v++) {
            int64_t row = b * LANES + v;
            if (sums[v] >= s->p.bar && row < e->count && passes(allowed, (uint32_t)row))
                offer(&s->p, sums[v], (uint32_t)row);
        }
        if (s->p.shift >= 0) raise_bar(&s->p);
    }
}

/* The best of all rows, or of those allowed, for each of `count` queries: `last` by their codes, whose fine vectors
 * decide.
 *
 * codes: of all rows, a byte a dimension, in blocks as those of keys. For the rest see hivlp_search.
 */
EXPORT int hivlp_search_whole(const engine *e, const uint8_t *codes, const float *queries, int64_t count, int64_t last,
                              int64_t k, const uint8_t *allowed, int64_t *out_rows, float *out_scores,
                              work_done *work) {
    if (k < 1 || last < 1 || last > MOST_KEPT) return -1;
    scratch all[READERS];
    int64_t blocks = (e->count + LANES - 1) / LANES;
    int made = 0, failed = 0;
    while (made < READERS && made < count && !failed) {
        failed = !make_scratch(&all[made], e, last, made ? all : NULL);
        made++;
    }
    for (int64_t start = 0; start < count && !failed; start += READERS) {
        int together = (int)(count - start < READERS ? count - start : READERS);
        for (int i = 0; i < together; i++) {
            if (i % TILE == 0)
                project(e, queries + (start + i) * e->fine_dim, together - i < TILE ? together - i : TILE, all[i].tile);
            all[i].z = all[i - i % TILE].tile + i % TILE * e->dims;
            prepare_small(&all[i], e);
            empty_pool(&all[i].p, last, 0);
        }
        for (int64_t b = 0; b < blocks; b += PART)
            for (int i = 0; i < together; i++)
                read_blocks(&all[i], e, codes, b, b + PART < blocks ? b + PART : blocks, allowed);
        for (int i = 0; i < together; i++) {
            settle(&all[i].p);
            decide(&all[i], e, queries + (start + i) * e->fine_dim, k, out_rows + (start + i) * k,
                   out_scores + (start + i) * k, work);
        }
        work->codes += together * e->count;
    }
    while (made) free_scratch(&all[--made]);
    return failed ? -1 : 0;
}
