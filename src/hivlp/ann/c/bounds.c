/* Upper bounds on inner products, from refinement codes: which rows an exact search has to score.
 *
 * The bound of a code is `offset + list_terms[its list] + scale * (unit * product + slack) + reach * norm`: `product` is the
 * exact integer product of the code and a query of 15 bits, `scale` and `norm` are the code's own. All variants agree but for
 * the rounding of these doubles. `hivlp.ann.bounds` says why this is a bound.
 */
#include "kernels.h"

#define AHEAD 16  /* codes that are prefetched */
#define BATCH 256 /* codes, a multiple of TOGETHER */

/* Rows of the codes in the blocks from `first` up to `last` whose bounds reach the threshold, and these bounds; returns how
 * many.
 *
 * norms: error norms of the codes, NO_NORM for all but one code of a row. block_lists: list of each block. high, low: of the
 * query, with 64 bytes more than it has dims. allowed: filter mask of `count` rows, one bit each, or NULL.
 */
EXPORT int64_t hivlp_bounds(const uint8_t *codes, const uint32_t *row_ids, const uint16_t *norms,
                            const uint32_t *block_lists, int64_t first, int64_t last, int nibble_bytes, int pair_bytes,
                            const int8_t *high, const int8_t *low, const double *list_terms, int64_t count,
                            double offset, double unit, double slack, double reach, double threshold,
                            const uint8_t *allowed, int64_t *rows, double *bounds) {
    int64_t found = 0, position = first * CODE_LANES, end = last * CODE_LANES, width = nibble_bytes + pair_bytes + 2;
    uint32_t batch[BATCH];
    while (position < end) {
        int filled = 0;
        for (; position < end && filled < BATCH; position++) {
            uint32_t row = row_ids[position];
            batch[filled] = (uint32_t)position;
            filled += norms[position] != NO_NORM && row < count && (!allowed || (allowed[row >> 3] >> (row & 7) & 1));
        }
        for (int i = 0; i < filled; i += TOGETHER) {
            const uint8_t *here[TOGETHER];
            int32_t products[TOGETHER];
            int many = filled - i < TOGETHER ? filled - i : TOGETHER;
            for (int r = 0; r < TOGETHER; r++) here[r] = codes + batch[i + (r < many ? r : 0)] * width;
            for (int r = 0; r < TOGETHER && i + r + AHEAD < filled; r++) {
                const uint8_t *next = codes + batch[i + r + AHEAD] * width;
                for (int at = 0; at < width; at += 64) __builtin_prefetch(next + at);
            }
            use.bound_dots(here, high, low, nibble_bytes, pair_bytes, products);
            for (int r = 0; r < many; r++) {
                uint32_t code = batch[i + r];
                uint16_t scale;
                memcpy(&scale, here[r] + nibble_bytes + pair_bytes, 2);
                double inner = scale * (unit * products[r] + slack);
                double bound = offset + list_terms[block_lists[code / CODE_LANES]] + inner + reach * norms[code];
                rows[found] = row_ids[code];
                bounds[found] = bound;
                found += bound >= threshold;
            }
        }
    }
    return found;
}
