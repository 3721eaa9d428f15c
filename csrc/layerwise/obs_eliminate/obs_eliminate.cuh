// CUDA kernel of obs_eliminate: a block a row, with an H⁻¹ of its own in global memory. As on the CPU
// what pivots take off it is kept back as vectors, and taken off in one pass for 32 of them.
#pragma once

#include "cuda/simt.h"
#include "layerwise/obs_eliminate/obs_eliminate_cuda.h"
#include "layerwise/obs_sweep/grid.cuh"

namespace mfac::cuda {

constexpr int kEliminateThreads = 256;
constexpr int kEliminateWarps = kEliminateThreads / kWarp;
constexpr int kEliminateBlocks = 2;  // on a multiprocessor, each with the registers of four
constexpr int kEliminateRows = 4;  // of H⁻¹, that a warp updates at a time
constexpr int64_t kNone = INT64_MAX;

enum WeightState : int64_t { kFree, kStays, kGone };

// Which weight goes next: what is outside of the grid before the others, then the least score, then
// the first. `rank` is a weight's index, + n if it is not outside.
struct Candidate {
  double score;
  int64_t rank;
};

MFAC_DEVICE bool goes_before(const Candidate& a, const Candidate& b, int64_t n) {
  if ((a.rank < n) != (b.rank < n)) return a.rank < n;
  return a.score < b.score || (a.score == b.score && a.rank < b.rank);
}

// The first of all threads' candidates, in every thread. Shared memory: a candidate a warp, free to
// be used again after the next barrier.
MFAC_DEVICE Candidate first_candidate(Candidate best, int64_t n) {
  MFAC_SHARED(Candidate, of_warp, [kEliminateWarps]);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const Candidate other = {__shfl_xor_sync(kAllLanes, best.score, bits), __shfl_xor_sync(kAllLanes, best.rank, bits)};
    if (goes_before(other, best, n)) best = other;
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = best;
  __syncthreads();
  best = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kEliminateWarps; ++warp)
    if (goes_before(of_warp[warp], best, n)) best = of_warp[warp];
  return best;
}

// A row of weights and what is left of it; the same in every thread.
struct EliminatedRow {
  int64_t row, n, left;
  const double* matrix;  // H⁻¹ before the pending pivots; `own` has the upper triangle alone
  int64_t stride;
  double *own, *vectors, *diagonal, *w;
  int64_t *places, *states, *room;  // places: of what may be left, ascending
  int pending;
};

MFAC_DEVICE double grid_value(const EliminationArguments& e, int64_t row, int64_t j, double w) {
  if (e.scales == nullptr) return 0.0;
  return quantized(w, e.scales[row * e.scales_stride + j], e.zeros[row * e.zeros_stride + j], e.levels);
}

MFAC_DEVICE void look_at(const EliminationArguments& e, const EliminatedRow& row, int64_t j, double w, double diagonal,
                         Candidate& best) {
  if (row.states[j] != kFree) return;
  const double off = w - grid_value(e, row.row, j, w), size = off < 0 ? -off : off;
  const bool is_outside = e.scales != nullptr && size > e.scales[row.row * e.scales_stride + j] * kWithinGrid;
  const Candidate other = {off * off / diagonal, is_outside ? j : j + row.n};
  if (other.score < HUGE_VAL && goes_before(other, best, row.n)) best = other;
}

// The state of a row before the first pivot, and the candidate of every thread.
MFAC_DEVICE Candidate begin_row(const EliminationArguments& e, EliminatedRow& row) {
  const bool* dropped = e.dropped + row.row * e.dropped_stride;
  for (int64_t j = threadIdx.x; j < row.n; j += kEliminateThreads) {
    row.w[j] = e.weight[row.row * e.weight_stride + j];
    row.diagonal[j] = e.inverse[j * e.inverse_stride + j];
    row.places[j] = j;
    row.states[j] = dropped[j] ? kStays : kFree;
  }
  __syncthreads();
  if (e.keep > 0)
    for (int64_t group = threadIdx.x; group * e.group < row.n; group += kEliminateThreads) {
      const int64_t begin = group * e.group, end = row.n - begin < e.group ? row.n : begin + e.group;
      int64_t room = end - begin > e.keep ? end - begin - e.keep : 0;
      for (int64_t j = begin; j < end; ++j) room -= dropped[j];
      row.room[group] = room;
      for (int64_t j = begin; room <= 0 && j < end; ++j) row.states[j] = kStays;
    }
  __syncthreads();
  Candidate best = {HUGE_VAL, kNone};
  for (int64_t j = threadIdx.x; j < row.n; j += kEliminateThreads) look_at(e, row, j, row.w[j], row.diagonal[j], best);
  return best;
}

// H⁻¹ <- H⁻¹ - Σ v vᵀ over the pending pivots and the weights that are left, upper triangle. A warp
// owns four rows at a time, a lane every 32nd column. Shared memory: their entries of the vectors.
MFAC_DEVICE void take_off_pending(EliminatedRow& row) {
  MFAC_SHARED(double, entries, [kEliminateWarps][kPendingPivots][kEliminateRows]);
  MFAC_SHARED(int64_t, left, [1]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();
  if (warp == 0) {
    int64_t count = 0;
    for (int64_t first = 0; first < row.left; first += kWarp) {
      const int64_t j = first + lane < row.left ? row.places[first + lane] : -1;
      const bool stays = j >= 0 && row.states[j] != kGone;
      const unsigned votes = __ballot_sync(kAllLanes, stays);
      __syncwarp();
      if (stays) row.places[count + __popc(votes & ((1u << lane) - 1))] = j;
      count += __popc(votes);
    }
    if (lane == 0) left[0] = count;
  }
  __syncthreads();
  row.left = left[0];
  for (int64_t i = warp * kEliminateRows; i < row.left; i += kEliminateWarps * kEliminateRows) {
    const int rows = int(row.left - i < kEliminateRows ? row.left - i : kEliminateRows);
    for (int e = lane; e < row.pending * kEliminateRows; e += kWarp) {
      const int k = e / kEliminateRows, r = e % kEliminateRows;
      entries[warp][k][r] = r < rows ? row.vectors[k * row.n + row.places[i + r]] : 0.0;
    }
    __syncwarp();
    for (int64_t at = i + lane; at < row.left; at += kWarp) {
      const int64_t j = row.places[at];
      double sum[kEliminateRows] = {};
#pragma unroll 4
      for (int k = 0; k < row.pending; ++k) {
        const double v = row.vectors[k * row.n + j];
#pragma unroll
        for (int r = 0; r < kEliminateRows; ++r) sum[r] += entries[warp][k][r] * v;
      }
#pragma unroll
      for (int r = 0; r < kEliminateRows; ++r) {
        if (i + r > at) break;
        const int64_t p = row.places[i + r];
        row.own[p * row.n + j] = row.matrix[p * row.stride + j] - sum[r];
      }
    }
    __syncwarp();
  }
  __syncthreads();
  row.matrix = row.own;
  row.stride = row.n;
  row.pending = 0;
}

// Drives weight p to q, the others after it; the candidate of every thread. Shared memory: entries p
// of the vectors kept back.
MFAC_DEVICE Candidate drive(const EliminationArguments& e, EliminatedRow& row, int64_t p, double q, bool was_dropped) {
  MFAC_SHARED(double, factors, [kPendingPivots]);
  const int thread = threadIdx.x;
  if (row.pending == kPendingPivots) take_off_pending(row);
  const double pivot = row.diagonal[p], shift = (row.w[p] - q) / pivot, inverse_root = 1 / sqrt(pivot);
  const int64_t group = e.keep == 0 ? 0 : p / e.group;
  const int64_t room = e.keep == 0 ? 1 : row.room[group] - !was_dropped;
  __syncthreads();
  if (thread < row.pending) factors[thread] = row.vectors[thread * row.n + p];
  if (thread == 0) {
    row.states[p] = kGone;
    row.w[p] = q;
    if (e.keep > 0) row.room[group] = room;
  }
  if (room <= 0)
    for (int64_t j = group * e.group + thread; j < row.n && j / e.group == group; j += kEliminateThreads)
      if (j != p && row.states[j] == kFree) row.states[j] = kStays;
  __syncthreads();
  Candidate best = {HUGE_VAL, kNone};
  for (int64_t at = thread; at < row.left; at += kEliminateThreads) {
    const int64_t j = row.places[at];
    if (row.states[j] == kGone) continue;
    double column = row.matrix == row.own && j < p ? row.own[j * row.n + p] : row.matrix[p * row.stride + j];
#pragma unroll 4
    for (int k = 0; k < row.pending; ++k) column -= row.vectors[k * row.n + j] * factors[k];
    const double v = column * inverse_root, w = row.w[j] - shift * column, diagonal = row.diagonal[j] - v * v;
    row.vectors[row.pending * row.n + j] = v;
    row.w[j] = w;
    row.diagonal[j] = diagonal;
    look_at(e, row, j, w, diagonal, best);
  }
  ++row.pending;
  return best;
}

// order, losses and result of every row.
// A block owns every gridDim.x-th row, one after the other; a thread every 256th weight, and of
// H⁻¹ every 32nd column of four rows of its warp; shared memory: 8.6 KiB.
MFAC_KERNEL(kEliminateThreads, kEliminateBlocks)
obs_eliminate_kernel(EliminationArguments e, double* numbers, int64_t* integers) {
  const int64_t n = e.n;
  double* const own = numbers + blockIdx.x * n * (n + kPendingPivots + 1);
  int64_t* const places = integers + blockIdx.x * 3 * n;
  for (int64_t i = blockIdx.x; i < e.rows; i += gridDim.x) {
    double* const vectors = own + n * n;
    EliminatedRow row = {i,
                         n,
                         n,
                         e.inverse,
                         e.inverse_stride,
                         own,
                         vectors,
                         vectors + kPendingPivots * n,
                         e.result + i * n,
                         places,
                         places + n,
                         places + 2 * n,
                         0};
    Candidate best = begin_row(e, row);
    for (int64_t j = 0; j < n; ++j)
      if (e.dropped[i * e.dropped_stride + j]) {
        __syncthreads();
        best = drive(e, row, j, 0.0, true);
      }
    int64_t step = 0;
    for (; step < e.count; ++step) {
      const Candidate next = first_candidate(best, n);
      if (next.rank == kNone) break;
      const int64_t p = next.rank < n ? next.rank : next.rank - n;
      if (threadIdx.x == 0) {
        e.order[i * e.count + step] = p;
        e.losses[i * e.count + step] = next.score;
      }
      best = drive(e, row, p, grid_value(e, i, p, row.w[p]), false);
    }
    for (step += threadIdx.x; step < e.count; step += kEliminateThreads) {
      e.order[i * e.count + step] = -1;
      e.losses[i * e.count + step] = HUGE_VAL;
    }
    __syncthreads();
  }
}

}  // namespace mfac::cuda
