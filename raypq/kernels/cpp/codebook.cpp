#include "codebook.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace raypq {

namespace {

// Rows of one task: at most kRows, a multiple of every kernel's block (kStep), and such that all
// threads get equally many tasks.
constexpr size_t kRows = 768, kStep = 192;

size_t task_rows(size_t n, size_t threads) {
  const size_t rounds = (n + kRows * threads - 1) / (kRows * threads);
  const size_t even = (n + rounds * threads - 1) / (rounds * threads);
  return (even + kStep - 1) / kStep * kStep;
}

// The memory of PackedCodebooks.
struct Packed {
  Array<float> packed, half, largest;
  Array<double> half_exact;
  PackedCodebooks codebooks;
};

Packed pack(const Isa& isa, const Shape& s, const float* C, const double* norms) {
  const size_t tile = isa.codeword_tile, K = (s.K + tile - 1) / tile * tile;
  Packed p{Array<float>(s.M * K * s.d), Array<float>(s.M * K), Array<float>(s.M),
           Array<double>(s.M * s.K), {}};
  for (size_t m = 0; m < s.M; ++m) {
    double most = 0;
    for (size_t k = 0; k < K; ++k) {
      const bool real = k < s.K;
      const double norm = real ? norms[m * s.K + k] : std::numeric_limits<double>::infinity();
      p.half[m * K + k] = float(0.5 * norm);
      for (size_t j = 0; j < s.d; ++j)
        p.packed[(m * K + k / tile * tile) * s.d + j * tile + k % tile] =
            real ? C[(m * s.K + k) * s.d + j] : 0.0f;
      if (!real) continue;
      p.half_exact[m * s.K + k] = 0.5 * norm;
      most = std::max(most, norm);
    }
    p.largest[m] = float(std::sqrt(most) * (1 + 0x1p-20)) + 0x1p-140f;
  }
  p.codebooks = {s, K, p.packed.data(), p.half.data(), p.half_exact.data(), p.largest.data(), C};
  return p;
}

// The exponent by which to scale values with largest magnitude ``most``, so that their squares
// neither overflow nor vanish in float32; 0 if they do not anyway. As in
// ``reference.kmeans_pp_init``.
int shift_of(float most) {
  int exponent = 0;
  if (most > 0) std::frexp(most, &exponent);
  return exponent < -40 || exponent > 50 ? -exponent : 0;
}

}  // namespace

void encode(const Isa& isa, const Shape& shape, const float* C, const double* norms,
            const float* U, size_t n, size_t threads, uint8_t* B) {
  if (!n) return;
  const Packed p = pack(isa, shape, C, norms);
  const size_t rows = task_rows(n, threads);
  std::vector<Array<float>> scratch(threads);
  parallel((n + rows - 1) / rows, threads, [&](size_t thread, size_t task) {
    if (!scratch[thread].size())
      scratch[thread] = Array<float>(encode_floats(shape, kRowBlock));
    const size_t first = task * rows;
    isa.encode(p.codebooks, U + first * shape.D(), std::min(rows, n - first),
               scratch[thread].data(), B + first * shape.M);
  });
}

void codeword_sums(const Shape& s, const float* C, const float* U, const uint8_t* B, size_t n,
                   size_t threads, const CodewordSums& out) {
  double *const count = out.count, *const total = out.total, *const error = out.error;
  // A thread owns some sub-codebooks, so every sum is formed in row order.
  const size_t tasks = std::min(threads, s.M);
  parallel(tasks, threads, [&](size_t, size_t task) {
    const size_t from = s.M * task / tasks, to = s.M * (task + 1) / tasks;
    for (size_t i = 0; i < n; ++i)
      for (size_t m = from; m < to; ++m) {
        const size_t at = m * s.K + B[i * s.M + m];
        const float *u = U + (i * s.M + m) * s.d, *c = C + at * s.d;
        double *sum = total + at * s.d, squared = 0;
        for (size_t j = 0; j < s.d; ++j) {
          const double residual = u[j] - c[j];
          squared += residual * residual;
          sum[j] += u[j];
        }
        count[at] += 1;
        error[at] += squared;
      }
  });
}

void add_rows(const double* X, const int64_t* group, size_t n, size_t D, size_t threads,
              double* total) {
  // A thread owns some columns, so every sum is formed in row order.
  const size_t tasks = std::min(threads, D);
  parallel(tasks, threads, [&](size_t, size_t task) {
    const size_t from = D * task / tasks, to = D * (task + 1) / tasks;
    for (size_t i = 0; i < n; ++i) {
      const double* x = X + i * D;
      double* sum = total + size_t(group[i]) * D;
      for (size_t j = from; j < to; ++j) sum[j] += x[j];
    }
  });
}

void kmeans_pp_init(const Shape& s, const float* U, size_t n, const int64_t* first,
                    const double* draws, size_t threads, float* C) {
  constexpr size_t kBlock = 512;  // rows whose sums stay in the L1 cache
  parallel(s.M, threads, [&](size_t, size_t m) {
    std::vector<float> part(n * s.d), nearest(n, std::numeric_limits<float>::infinity());
    float most = 0;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < s.d; ++j) {
        const float x = part[j * n + i] = U[(i * s.M + m) * s.d + j];
        most = std::max(most, std::fabs(x));
      }
    if (const int shift = shift_of(most)) {
      const double factor = std::ldexp(1.0, shift);
      for (float& x : part) x = float(x * factor);
    }
    std::vector<double> mass(n);
    std::vector<float> c(s.d);
    for (size_t k = 0, row = size_t(first[m]);; ++k) {
      std::copy_n(U + (row * s.M + m) * s.d, s.d, C + (m * s.K + k) * s.d);
      if (k + 1 == s.K) break;
      for (size_t j = 0; j < s.d; ++j) c[j] = part[j * n + row];
      for (size_t at = 0; at < n; at += kBlock) {
        float squared[kBlock] = {};
        const size_t count = std::min(kBlock, n - at);
        for (size_t j = 0; j < s.d; ++j) {
          const float* u = part.data() + j * n + at;
          for (size_t i = 0; i < count; ++i) squared[i] += (u[i] - c[j]) * (u[i] - c[j]);
        }
        float* least = nearest.data() + at;
        for (size_t i = 0; i < count; ++i) least[i] = squared[i] < least[i] ? squared[i] : least[i];
      }
      double sum = 0;
      for (size_t i = 0; i < n; ++i) mass[i] = sum += nearest[i];
      const double draw = draws[m * (s.K - 1) + k] * sum;
      const auto drawn = std::lower_bound(mass.begin(), mass.end(), draw);
      row = std::min(size_t(drawn - mass.begin()), n - 1);
    }
  });
}

}  // namespace raypq
