/* Constants of the approximate index that C and Python share; hivlp.ann.constants reads this file. */
#pragma once

#define LIST_LANES 16     /* router keys side by side in a block: one a list */
#define CODE_LANES 32     /* codes side by side in a block of an inverted list */
#define NO_ROW 0xffffffff /* row id of a lane that no code fills, at the end of a list */
#define NO_NORM 65535     /* error norm of a code whose row is bounded by another of its codes */

#define MAX_DIMS 2048         /* of the codes: a lookup table's sums, at most 63 for every four dims, fit 15 bits */
#define MAX_BOUND_DIMS 8192   /* of the codes of a bound: 15-bit query times 4-bit codes, summed in an int32 */
#define MAX_SIGN_SLACK 8191   /* lookup-table steps added to a sign score, so that sums stay within 16 bits */
#define MAX_WINDOW 268435456  /* score steps below the k-th refinement score: more than scores lie apart */

#define WHOLE_LISTS 8         /* best lists of a query, read to their end: they set the threshold for the others */
#define GROUP_SLACK 1.0       /* natural log by which a group of lists may fall short of the margin */

#define REFINE_STEP 0.335     /* standard deviations a 4-bit code steps: the best uniform quantiser of a normal */
#define COARSE_STEP 0.996     /* standard deviations a 2-bit code steps */
#define ABS_SPREAD 0.756      /* standard deviation of |x| in units of its mean, x normal: sqrt(pi / 2 - 1) */
#define MEAN_SIGN_SCALE 1.5708 /* mean sign scale of normal residuals: E[x^2] / E[|x|]^2 = pi / 2 */
