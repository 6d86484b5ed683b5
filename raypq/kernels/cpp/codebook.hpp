// Codebooks: assignment of vectors to codewords, sums of the assigned vectors and of
// other rows, k-means++ seeds.
#pragma once

#include "isa.hpp"
#include "support.hpp"

namespace raypq {

// Codes B [n, M] of U [n, D] with codebooks C [M, K, d] and norms ‖c‖² [M, K].
void encode(const Isa& isa, const Shape& shape, const float* C, const double* norms,
            const float* U, size_t n, size_t threads, uint8_t* B);

struct CodewordSums {
  double *count, *total, *error;  // [M, K], Σu [M, K, d], Σ‖u − c‖² [M, K]
};

// Adds rows U [n, D] with codes B to the sums of their codewords, in row order; a squared residual
// is summed over j in order. The same bits for any number of threads.
void codeword_sums(const Shape& shape, const float* C, const float* U, const uint8_t* B, size_t n,
                   size_t threads, const CodewordSums& out);

// Adds rows X [n, D] to the sums of their groups, total [·, D], in row order.
void add_rows(const double* X, const int64_t* group, size_t n, size_t D, size_t threads,
              double* total);

// k-means++ seeds C [M, K, d] in every sub-space of U [n, M·d]. The first codeword is row first[m];
// each further one is the row at which the running sum of squared distances to the nearest codeword
// so far reaches draws[m, k − 1] of its total. Squares are summed over j in order, in float32, of
// values that are first scaled by a power of two where their squares would overflow or vanish.
void kmeans_pp_init(const Shape& shape, const float* U, size_t n, const int64_t* first,
                    const double* draws, size_t threads, float* C);

}  // namespace raypq
