/* What is made of a query before it is searched for: its unit vector, and its projection to fewer dims.
 *
 * Both take less time than to let go of the interpreter's lock and to take it back, as numpy would.
 */
#include <math.h>
#include <stdint.h>

#include "platform.h"

#define LANES 16 /* sums that are made side by side, so that the compiler may use vector instructions */

/* The vector at unit length; returns the length that it had. Nothing is written if that is zero or not finite. */
EXPORT double hivlp_unit(const float *given, int64_t dim, float *unit) {
    double sums[LANES] = {0}, sum = 0;
    int64_t done = 0;
    for (; done + LANES <= dim; done += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += (double)given[done + j] * given[done + j];
    for (int j = 0; j < LANES; j++) sum += sums[j];
    for (; done < dim; done++) sum += (double)given[done] * given[done];
    double norm = sqrt(sum);
    if (norm > 0 && isfinite(norm))
        for (int64_t i = 0; i < dim; i++) unit[i] = (float)(given[i] / norm);
    return norm;
}

/* Each of the rows at unit length; lengths gets those that they had. */
EXPORT void hivlp_units(const float *given, int64_t rows, int64_t dim, float *units, double *lengths) {
    for (int64_t r = 0; r < rows; r++) lengths[r] = hivlp_unit(given + r * dim, dim, units + r * dim);
}

/* Products of each of the rows of a matrix with a vector. */
EXPORT void hivlp_project(const float *matrix, int64_t rows, int64_t dim, const float *vector, float *out) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = matrix + r * dim;
        float sums[LANES] = {0}, sum = 0;
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES)
            for (int j = 0; j < LANES; j++) sums[j] += row[i + j] * vector[i + j];
        for (int j = 0; j < LANES; j++) sum += sums[j];
        for (; i < dim; i++) sum += row[i] * vector[i];
        out[r] = sum;
    }
}
