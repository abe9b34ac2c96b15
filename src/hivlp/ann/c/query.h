/* What is searched, and all that is derived from one query; a part of kernels.c. */
#pragma once
#include <math.h>
#include <stdlib.h>

#include "pool.h"
#include "scoring.h"

static inline int32_t ordered(float value) {
    /* Floats as integers of the same order. */
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

#define MOST_STEPS (1 << 28) /* of what a score is made of, so that no sum of two or three of them wraps */

/* A number in a score's steps; false numbers, and those beyond all scores, become such as are none of their kind's. */
static inline int32_t steps_of(float value) {
    value = value < MOST_STEPS ? value : MOST_STEPS; /* so written, one instruction each; fminf takes several */
    return (int32_t)lrintf(value > -MOST_STEPS ? value : -MOST_STEPS);
}

typedef struct {
    const uint16_t *map;       /* (dims, fine_dim) float16: what a query looks like to the codes */
    const float *amplitude;    /* (signed_dims) mean absolute residual, which a sign stands for */
    const float *step;         /* (dims) what one step of a nibble stands for, times the code's stretch */
    const uint8_t *keys;       /* blocks of 16 list keys, in nibbles */
    const float *key_bias;     /* (lists) */
    const float *key_steps;    /* (lists) what one step of a key stands for */
    const uint8_t *group_keys; /* blocks of 16 keys of groups, a group being a block of list keys */
    const float *group_bias;   /* (groups) */
    const int8_t *centres;     /* (lists, dims) what the codes of a list are counted from */
    const int64_t *starts;     /* (lists + 1) first block of each list */
    const uint8_t *signs;      /* blocks of 32 codes, list after list */
    const uint8_t *factors;    /* 32 a block, in steps of factor_scale; in a list the largest come first */
    const uint8_t *heads;      /* the first factor of each block */
    const uint32_t *rows;      /* 32 a block: the row of each code, UINT32_MAX where there is none */
    const uint8_t *nibbles;    /* 32 a block: codes of four bits and of two, and what stretches them, 16 bits of stretch_scale */
    const uint16_t *fine;      /* (rows, fine_dim) float16 */
    int64_t count;             /* of rows; a code of any other row is skipped */
    int64_t lists;
    int32_t dims;              /* a multiple of 16 */
    int32_t signed_dims;       /* likewise: the first ones, which have signs, and four bits instead of two */
    int32_t fine_dim;
    float centre_scale;
    float factor_scale;
    float group_scale;
    float stretch_scale;
    float error;               /* what nibbles leave out of a product with a query of unit length, root mean square */
} engine;

/* How hard to look. */
typedef struct {
    int64_t lists, last; /* lists to read, and codes that nibbles hand on, at most */
    float margin;        /* how far below the best list's score one may be that is read */
    float slack;         /* how many times what signs usually leave out a code may be better than they say */
    float tolerance;     /* how many errors below the last wanted one a code may be that nibbles hand on */
} effort;

typedef struct { int64_t lists, codes, nibbles, fine; } work_done;

static inline int passes(const uint8_t *allowed, uint32_t row) {
    return allowed == NULL || (allowed[row >> 3] >> (row & 7) & 1);
}

/* A code whose nibbles have been asked for. */
typedef struct { uint32_t place; int32_t offset, most; } waiting;
#define WAITING 16
#define TAKEN 4 /* of them are scored together */

/* The first blocks of a list, and what its centre adds to their scores. */
typedef struct { int64_t list; int32_t blocks, offset; } part;

#define MOST_SPARE 8191   /* steps of a table: so that sums stay within 16 bits */
#define MOST_MIDDLE 16384 /* likewise: half of what 2048 dimensions can say */
#define LEAST (1 << 24)   /* a score that no code is below, its list's centre left out */
#define SPREAD 0.756f /* standard deviation of a normal variable's size, its mean being 1 */
#define MEAN_FACTOR 1.5708f /* its mean square, likewise: what a factor is on average */
#define STEP_OF_SPREAD 0.335f /* what a step of four bits is of a standard deviation */
#define COARSE_STEP 0.996f   /* of two */
#define TILE 4 /* queries that are projected together: to widen the map's float16 takes longer than the products */

/* All that is derived from one query, and the memory that a search needs. */
typedef struct {
    float *tile;       /* (TILE, dims) where this query lies, and the next ones */
    const float *z;    /* (dims) where this one lies */
    int8_t *small;     /* (dims) the same in steps of small_scale */
    int8_t *nibble;    /* (dims) z * step, in steps of its own */
    uint8_t *table;    /* (signed_dims / 16, 128) */
    float *scores;     /* (groups) */
    uint32_t *worth;   /* (groups) those whose lists are looked at */
    candidate *order;  /* (lists) */
    part *parts;       /* (lists) */
    pool p;
    uint32_t *seen;    /* (slots) a hash table of rows */
    int64_t slots;     /* a power of two */
    waiting ring[WAITING];
    int64_t put, taken; /* into the ring, and out of it */
    int64_t refined;   /* codes whose nibbles were scored */
    float small_scale;
    float centre_unit, nibble_unit; /* in a score's steps: one of a product with a centre, one with nibbles and a stretch */
    int32_t middle;    /* of the table's sums */
    int32_t spare;     /* how much more than they say a code may be, likewise */
    int32_t nibble_middle; /* of twice the sums of nibbles */
    int32_t deviation; /* of what a code has beyond its list's centre, for each step of its factor, in steps of the table */
    int32_t window;    /* how far below the last wanted one a code's score may be */
    float best;        /* the router's score of the best list */
    int borrows;       /* scores, worth, order, parts and seen are another's */
} scratch;

static void free_scratch(scratch *s) {
    free(s->tile); free(s->small); free(s->nibble); free(s->table); free(s->p.list);
    if (!s->borrows) {
        free(s->scores); free(s->worth); free(s->order); free(s->parts); free(s->seen);
    }
}

/* Memory for one query at a time; what it needs only for a while is that of `with`, if there is one. */
static int make_scratch(scratch *s, const engine *e, int64_t keep, const scratch *with) {
    int64_t lanes = (e->lists + LANES - 1) / LANES * LANES + LANES;
    memset(s, 0, sizeof *s);
    s->tile = malloc((size_t)e->dims * TILE * sizeof(float));
    s->small = malloc((size_t)e->dims);
    s->nibble = calloc((size_t)e->dims + 64, 1);
    s->table = malloc((size_t)e->signed_dims * 8 + 64);
    s->p.keep = keep;
    s->p.room = 8 * keep + SIGN_LANES;
    s->p.list = malloc((size_t)s->p.room * sizeof(candidate));
    for (s->slots = 64; s->slots < 2 * keep; s->slots *= 2) {}
    s->borrows = with != NULL;
    s->scores = with ? with->scores : malloc((size_t)lanes * sizeof(float));
    s->worth = with ? with->worth : malloc((size_t)lanes * sizeof(uint32_t));
    s->order = with ? with->order : malloc((size_t)lanes * sizeof(candidate));
    s->parts = with ? with->parts : malloc((size_t)lanes * sizeof(part));
    s->seen = with ? with->seen : malloc((size_t)s->slots * sizeof(uint32_t));
    return s->tile && s->small && s->nibble && s->table && s->scores && s->worth && s->order && s->parts &&
           s->p.list && s->seen;
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

/* What keys, centres and whole rows are scored with. */
static void prepare_small(scratch *s, const engine *e) { s->small_scale = to_small(s->z, NULL, e->dims, s->small); }

/* What signs and nibbles are scored with. */
static void prepare_codes(scratch *s, const engine *e, const float *query, const effort *how) {
    float widest = 1e-20f;
    for (int g = 0; g < e->signed_dims; g += 4) {
        float width = 0;
        for (int j = g; j < g + 4; j++) width += fabsf(s->z[j] * e->amplitude[j]);
        if (width > widest) widest = width;
    }
    float table_unit = 2 * widest / 63.0f, middle = 0, squares = 0;
    for (int g = 0; g < e->signed_dims / 4; g++) {
        float t[4], width = 0;
        for (int j = 0; j < 4; j++) {
            t[j] = s->z[4 * g + j] * e->amplitude[4 * g + j];
            width += fabsf(t[j]);
            squares += SPREAD * SPREAD * t[j] * t[j];
        }
        middle += width;
        /* Groups 0 to 3 of 16 dimensions: low half of the first bytes, high half, low half of the second, high. */
        uint8_t *out = s->table + 128 * (g / 4) + 32 * (g % 4 / 2) + 64 * (g % 2);
        for (int code = 0; code < 16; code++) {
            float sum = width;
            for (int j = 0; j < 4; j++) sum += code >> j & 1 ? t[j] : -t[j];
            out[code] = out[16 + code] = (uint8_t)lrintf(sum / table_unit);
        }
    }
    float all = 0;
    for (int j = 0; j < e->dims; j++) {
        float of_dim = s->z[j] * e->step[j] / (j < e->signed_dims ? STEP_OF_SPREAD : COARSE_STEP);
        all += of_dim * of_dim;
        if (j >= e->signed_dims) squares += of_dim * of_dim;
    }
    s->deviation = steps_of(fmaxf(1, sqrtf(all) / (table_unit * MEAN_FACTOR)));
    s->middle = (int32_t)lrintf(fminf(fmaxf(middle / table_unit, 0), MOST_MIDDLE));
    float spread = rintf(fmaxf(1, sqrtf(squares) / table_unit));
    s->spare = (int32_t)lrintf(fminf(fmaxf(how->slack * spread, -MOST_SPARE), MOST_SPARE));
    float unit = table_unit * e->factor_scale; /* what one step of a code's score stands for */
    s->centre_unit = s->small_scale * e->centre_scale / unit;
    s->nibble_unit = to_small(s->z, e->step, e->dims, s->nibble) / 2 * e->stretch_scale / unit;
    double length = 0;
    for (int j = 0; j < e->fine_dim; j++) length += (double)query[j] * query[j];
    s->window = (int32_t)lrintf(fmaxf(fminf(how->tolerance * e->error * (float)sqrt(length) / unit, MOST_WINDOW), 0));
    s->nibble_middle = 0;
    for (int j = 0; j < e->dims; j++) s->nibble_middle += (j < e->signed_dims ? 15 : 3) * s->nibble[j];
}
