/* Sums over the entries of tensors, each tensor read once.
 *
 * Sums of single precision run over rows of ROW entries in LANES partial sums, so that small entries survive beside
 * outliers; rows are added up in double precision. Every thread has its own place in the output, which the caller adds
 * up in a fixed order: the same thread count gives the same bits. Where a sum is not finite, the caller looks again.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define ROW 512

/* A row of n bfloat16 numbers, which are the upper halves of single precision; the rest is 0. */
static void widen(const uint16_t *restrict entries, int64_t n, float *restrict row) {
    uint32_t bits[ROW] = {0};
    for (int i = 0; i < n; i++)
        bits[i] = (uint32_t)entries[i] << 16;
    memcpy(row, bits, sizeof bits);
}

typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t integers __attribute__((vector_size(LANES * sizeof(float))));

static vector load(const float *entries) {
    vector x;
    memcpy(&x, entries, sizeof x);
    return x;
}

static float across(vector lanes) {
    float sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += lanes[j];
    return sum;
}

/* The larger magnitudes: without their sign, numbers are in the order of their bits, and NaN is above all. */
static integers larger(integers largest, vector x) {
    const integers size = (integers)x & INT32_MAX, above = size > largest;
    return (size & above) | (largest & ~above);
}

static double top(integers largest, double before) {
    const vector sizes = (vector)largest;
    for (int j = 0; j < LANES; j++)
        before = sizes[j] > before ? sizes[j] : before;
    return before;
}

/* Sum, sum of squares, 0, 0 and largest magnitude of a row; zeros at its end change nothing. */
static void plain(const float *row, double *out) {
    vector total = {0}, squares = {0};
    integers largest = {0};
    for (int i = 0; i < ROW; i += LANES) {
        const vector x = load(row + i);
        total += x;
        squares += x * x;
        largest = larger(largest, x);
    }
    out[0] += across(total);
    out[1] += across(squares);
    out[4] = top(largest, out[4]);
}

/* Sums of the first four powers, and largest magnitude, of a row of n entries and zeros; the zeros are overwritten. The
 * powers are of distances to the mean of the row: those of the entries themselves would leave nothing of a small spread
 * around a large mean. */
static void centred(const float *row, int64_t n, float *rest, double *out) {
    vector total = {0};
    integers largest = {0};
    for (int i = 0; i < ROW; i += LANES) {
        const vector x = load(row + i);
        total += x;
        largest = larger(largest, x);
    }
    const float mean = across(total) / n;
    for (int64_t i = n; i < ROW; i++)
        rest[i] = mean; /* at distance 0 */
    vector first = {0}, second = {0}, third = {0}, fourth = {0};
    for (int i = 0; i < ROW; i += LANES) {
        const vector z = load(row + i) - mean, square = z * z;
        first += z;
        second += square;
        third += square * z;
        fourth += square * square;
    }
    const double m = mean, a = across(first), b = across(second), c = across(third), d = across(fourth);
    out[0] += n * m + a;
    out[1] += b + 2 * m * a + n * m * m;
    out[2] += c + 3 * m * b + 3 * m * m * a + n * m * m * m;
    out[3] += d + 4 * m * c + 6 * m * m * b + 4 * m * m * m * a + n * m * m * m * m;
    out[4] = top(largest, out[4]);
}

/* Powers of n entries into out[threads][5]. */
void powers(const void *source, int is_bfloat16, int high, int64_t n, int threads, double *out) {
    const int64_t rows = (n + ROW - 1) / ROW;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        double sums[5] = {0};
        for (int64_t r = rows * thread / threads; r < rows * (thread + 1) / threads; r++) {
            const int64_t start = r * ROW, entries = n - start < ROW ? n - start : ROW;
            float copy[ROW];
            const float *row = (const float *)source + start;
            if (is_bfloat16) {
                widen((const uint16_t *)source + start, entries, copy);
                row = copy;
            } else if (entries < ROW) {
                memset(copy, 0, sizeof copy);
                memcpy(copy, row, entries * sizeof(float));
                row = copy;
            }
            if (high)
                centred(row, entries, copy, sums); /* a row of n < ROW entries lies in the copy */
            else
                plain(row, sums);
        }
        memcpy(out + thread * 5, sums, sizeof sums);
    }
}

/* Squares of m / (sqrt(v) * root + eps) + share * w and of w, for n weights and moments, into out[threads][2]. */
void adam(const float *weight, const float *first, const float *second, float root, float eps, float share, int64_t n,
          int threads, double *out) {
    const int64_t rows = (n + ROW - 1) / ROW;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        double moved = 0, weights = 0;
        for (int64_t r = rows * thread / threads; r < rows * (thread + 1) / threads; r++) {
            const int64_t start = r * ROW, entries = n - start < ROW ? n - start : ROW;
            const float *w = weight + start, *m = first + start, *v = second + start;
            vector of_moved = {0}, of_weights = {0};
            int64_t i = 0;
            for (; i + LANES <= entries; i += LANES)
                for (int j = 0; j < LANES; j++) {
                    float step = m[i + j] / (sqrtf(v[i + j]) * root + eps) + share * w[i + j];
                    of_moved[j] += step * step;
                    of_weights[j] += w[i + j] * w[i + j];
                }
            for (; i < entries; i++) {
                float step = m[i] / (sqrtf(v[i]) * root + eps) + share * w[i];
                of_moved[0] += step * step;
                of_weights[0] += w[i] * w[i];
            }
            moved += across(of_moved);
            weights += across(of_weights);
        }
        out[thread * 2] = moved;
        out[thread * 2 + 1] = weights;
    }
}
