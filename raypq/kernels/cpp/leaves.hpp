// Classification of many classes by leaves: groups of at most 64 similar classes with a centre c and
// a radius r, so that no weights w of the leaf are farther than r from c. By Cauchy and Schwarz
//
//     ⟨q, w⟩ ≤ ⟨q, c⟩ + ‖q‖·r,
//
// so that a leaf whose bound is below a row's cutoff holds none of its k best classes.
//
// Two steps, of which the caller repeats the first for each 64 leaves, and the second for those rows
// that the first leaves over.
#pragma once

#include <utility>

#include "tables.hpp"

namespace raypq {

// Codes [n, M] with ‖q‖² [n] and, for each, a score that k classes reach [n]; −∞ where none is known.
struct LeafRows {
  const uint8_t* codes;
  const double* squared;
  const float* floor;
  size_t n;
};

// Largest magnitudes of the classes in leaves, for the tie margin (bounds.hpp): max ‖w‖ and
// max |bias|.
struct Magnitudes {
  double weight, bias;
};

// Rows of each leaf, by leaf: those of leaf i are rows[begin[i], begin[i + 1]), ascending.
struct LeafPairs {
  std::vector<uint32_t> begin, rows;
};

// The rows that may have one of their k best classes in each leaf. ``bounds``: tables of the
// centres, whose source has radii, and the largest bias of each leaf as its bias.
LeafPairs leaf_pairs(const ScanTables& bounds, const LeafRows& rows, const Magnitudes& largest,
                     size_t threads);

// Classes in the order of their leaves: leaf i is [first[i], first[i + 1]). ``source`` holds their
// weights and biases, ``number`` says which class each one is.
struct LeafClasses {
  Source source;
  const uint32_t* first;
  const int64_t* number;
  size_t leaves;
};

// Adds the classes of leaves to the k best of their rows, scores and classes [n, k]: best first,
// ties to the lower number, −∞ where there are fewer. Classes below a row's floor are left out.
// Returns how many inner products were formed exactly.
size_t scan_leaves(const LeafClasses& classes, const LeafPairs& pairs, const LeafRows& rows,
                   const Isa& isa, size_t k, size_t threads, float* scores, int64_t* best);

}  // namespace raypq
