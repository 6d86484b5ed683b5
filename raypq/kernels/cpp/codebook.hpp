// Assigning vectors to codewords, and the sums that training needs of the assignment.
#pragma once

#include "isa.hpp"
#include "support.hpp"

namespace raypq {

// B [n, M] of U [n, D] under C [M, K, d]; norms ‖c‖² [M, K].
void encode(const Isa& isa, const Shape& shape, const float* C, const double* norms,
            const float* U, size_t n, size_t threads, uint8_t* B);

// Adds to count [M, K], total [M, K, d] and error [M, K] what the rows give, in row order; a
// squared residual is summed over j in order. The same bits for any number of threads.
void accumulate(const Shape& shape, const float* C, const float* U, const uint8_t* B, size_t n,
                size_t threads, double* count, double* total, double* error);

// k-means++ in every sub-space of U [n, M·d]: C [M, K, d] begins with row first[m], and each further
// codeword is the row at which the running sum of squared distances to the nearest one so far
// reaches aims[m, k − 1] of its total. Squares are summed over j in order, in float32, of values that
// are first scaled by a power of two where their squares would overflow or vanish.
void spread(const Shape& shape, const float* U, size_t n, const int64_t* first, const double* aims,
            size_t threads, float* C);

}  // namespace raypq
