// Bounds of scores, by which scans exclude what cannot be among the k best. Glossary of the names:
//
//   units         scores are compared in the tables' units, score·down, so that they fit float32;
//                 in classification also without what all scores of a row share:
//                 (score − offset)·factor·down
//   sum           Σ_m of uint8 table entries; base + unit·sum + extra is the score within ± error
//   error         the largest possible error of that (tables.hpp)
//   likely_error  an error that is rarely exceeded (three standard deviations of rounding), far
//                 less than ``error``
//   lower, upper  bounds of a candidate's score. Search: ± error. Classification: the lower bound
//                 is only likely (− likely_error), the upper bound certain (+ error)
//   bound_width   upper − lower, of all candidates of a tile: likely_error + error
//   kth_lower     the k-th best lower bound of a row's (or query's) candidates
//   tie_margin    how far apart two scores may be and still tie once rounded to float32, where the
//                 lower index wins; it also covers the rounding of the bounds themselves
//   cutoff        kth_lower − tie_margin, or a forecast: below it nothing can be among the k best
//   threshold     the cutoff of a row (or query) in a tile as an integer: the least sum of a hit
//   limit         a threshold that no sum reaches
//   pick_raise    what is added to kth_lower to pick the candidates that are scored first
//   rest_upper    the largest upper bound of the candidates that were not picked
#pragma once

#include <cmath>
#include <limits>

namespace raypq {

constexpr double kNoCutoff = -std::numeric_limits<double>::infinity();

// The least float not below x.
inline float round_up(double x) {
  const float y = float(x);
  return double(y) < x ? std::nextafter(y, std::numeric_limits<float>::infinity()) : y;
}

}  // namespace raypq
