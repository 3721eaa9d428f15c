// Launcher of the CUDA twin of obs_eliminate: pointers to device memory, a stream, the launch's
// error.
#pragma once

#include <algorithm>

#include "common/formats.h"

namespace mfac::cuda {

constexpr int kPendingPivots = 32;                // whose vectors are kept back
constexpr int64_t kMostSlots = 264;               // blocks that each have an H⁻¹, two for every multiprocessor
constexpr int64_t kSlotBytes = int64_t{4} << 30;  // of all of them, where one is no larger

// weight and dropped [rows, n], inverse [n, n], scales and zeros [rows, n] or null; order and losses
// [rows, count], result [rows, n].
struct EliminationArguments {
  const double* weight;
  int64_t weight_stride;
  const double* inverse;
  int64_t inverse_stride;
  const bool* dropped;
  int64_t dropped_stride;
  int64_t rows, n, count, keep, group;
  const double* scales;
  int64_t scales_stride;
  const double* zeros;
  int64_t zeros_stride;
  double levels;
  int64_t* order;
  double* losses;
  double* result;
};

// Of a slot: H⁻¹, the vectors kept back, the diagonal; and places, states, and how many of a group
// may go.
inline int64_t slot_numbers(int64_t n) { return n * (n + kPendingPivots + 1); }
inline int64_t slot_integers(int64_t n) { return 3 * n; }
inline int64_t elimination_slots(int64_t rows, int64_t n) {
  const int64_t fit = std::max<int64_t>(1, kSlotBytes / std::max<int64_t>(1, 8 * slot_numbers(n)));
  return std::min(rows, std::min(fit, kMostSlots));
}

// numbers: slots·slot_numbers(n), integers: slots·slot_integers(n)
int obs_eliminate(const EliminationArguments& elimination, int64_t slots, double* numbers, int64_t* integers,
                  void* stream);

}  // namespace mfac::cuda
