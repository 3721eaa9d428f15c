// How a pass over the window moves the weights: w <- decay·w - rate·v along v = u, or along its
// average v <- momentum·v + (1 - momentum)·u, where u = beta·Gᵀc is what the pass computes.
#pragma once

#include <cstdint>
#include <vector>

namespace mfac {

// The weights of one parameter, which are columns [begin, end) of the window.
template <typename V>
struct Piece {
  V* weights;
  int64_t begin, end;
  double rate, decay;
};

template <typename V>
struct DescentPieces {
  V* average;  // [d], or null for none
  double beta, momentum;
  std::vector<Piece<V>> pieces;  // none empty, ascending and apart
};

}  // namespace mfac
