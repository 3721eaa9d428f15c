// What becomes of the products u_j = Σ_r c_r·g_rj that a pass over the window computes: they are
// added to vectors, or weights move along them.
#pragma once

#include <vector>

#include "cuda/simt.h"
#include "window/window_combine/descent.h"

namespace mfac::cuda {

// out[i, j] <- alpha·out[i, j] + beta·u_j; alpha = 0 reads no out.
template <typename V>
struct Combination {
  static constexpr bool kMoves = false;
  V* out;
  int64_t stride;
  double alpha, beta;

  MFAC_DEVICE bool covers(int64_t, int64_t) const { return true; }
  MFAC_DEVICE void operator()(int64_t i, int64_t column, double u, bool) const {
    V& y = out[i * stride + column];
    y = V(alpha == 0 ? beta * u : alpha * double(y) + beta * u);
  }
};

constexpr int kMostPieces = 96;  // with which a kernel's parameters stay below 4 KiB

// The weights of columns [begin, end) move along beta·u_j, or along its average where there is one.
// What is `carried` moves along beta·u_j in any case, and its average becomes 0.
template <typename V>
struct Descent {
  static constexpr bool kMoves = true;
  V* average;  // [d] or null
  double beta, momentum;
  int64_t begin, end;
  int count;
  Piece<V> pieces[kMostPieces];  // ascending

  // Whether a block of these columns has anything to do.
  MFAC_DEVICE bool covers(int64_t first, int64_t last) const { return first < end && last > begin; }

  MFAC_DEVICE void operator()(int64_t, int64_t column, double u, bool carried) const {
    if (column < begin || column >= end) return;
    V move = V(beta * u);
    if (average != nullptr) {
      const double kept = momentum == 0 ? 0 : momentum * double(average[column]);
      if (!carried) move = V(kept + (1 - momentum) * beta * u);
      average[column] = carried ? V(0) : move;
    }
    int low = 0;  // the last piece that begins at this column or before it
    for (int high = count; high - low > 1;) {
      const int middle = (low + high) / 2;
      if (pieces[middle].begin <= column) low = middle;
      else high = middle;
    }
    const Piece<V>& piece = pieces[low];
    if (low == count || column < piece.begin || column >= piece.end) return;  // moved by nothing
    V& weight = piece.weights[column - piece.begin];
    weight = V(piece.decay * double(weight) - piece.rate * double(move));
  }
};

// Calls launch(first_block, blocks, output) for runs of columns, each with as many pieces as an
// output holds, until a launch fails; `columns` are a block's columns. A block that two runs share
// is computed in both, each column written in one.
template <typename V, typename F>
int for_runs(const DescentPieces<V>& descent, int64_t d, int64_t columns, const F& launch) {
  const std::vector<Piece<V>>& pieces = descent.pieces;
  int64_t begin = 0;
  for (std::size_t first = 0; begin < d; first += kMostPieces) {
    Descent<V> output{descent.average, descent.beta, descent.momentum, begin, d, 0, {}};
    for (std::size_t i = first; i < pieces.size() && output.count < kMostPieces; ++i)
      output.pieces[output.count++] = pieces[i];
    if (first + kMostPieces < pieces.size()) output.end = pieces[first + kMostPieces].begin;
    const int64_t first_block = begin / columns;
    const int error = launch(first_block, (output.end + columns - 1) / columns - first_block, output);
    if (error != 0) return error;
    begin = output.end;
  }
  return 0;
}

}  // namespace mfac::cuda
