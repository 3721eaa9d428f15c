// Which entries of a block of columns are the largest, as topk_push_ wants to know (topk_push.cuh).
#pragma once

#include "cuda/reduce.cuh"
#include "window/topk/topk_cuda.h"

namespace mfac::cuda {

constexpr int kSelectThreads = 1024;
constexpr int kSelectBits = 11;  // of a key at a time: a float's exponent and the bits that tell its neighbours apart
constexpr int kSelectBins = 1 << kSelectBits;

// The bits of |x|, which order as |x| does.
MFAC_DEVICE unsigned magnitude_key(float x) { return __float_as_uint(x) & 0x7fffffffu; }
MFAC_DEVICE uint64_t magnitude_key(double x) { return uint64_t(__double_as_longlong(x)) & 0x7fffffffffffffffu; }

// error + gradient over a block of columns. A lane holds kHeld columns in registers, or as few as
// it takes to go through the block in one stretch: then each is read once. Longer blocks are read
// stretch by stretch, every time anew. Within a stretch the warps, their turns and their lanes are
// in the order of columns.
template <typename V>
class CarriedColumns {
 public:
  MFAC_DEVICE CarriedColumns(const V* error, const V* gradient, int cols)
      : error_(error), gradient_(gradient), cols_(cols) {
    const int turns = int(ceil_div(cols, kSelectThreads));
    turns_ = turns < kHeld ? turns : kHeld;
    read(0);
  }

  // f(first column) for every stretch, whose columns are then held.
  template <typename F>
  MFAC_DEVICE void for_stretches(const F& f) {
    const int stretch = turns_ * kSelectThreads;
    for (int first = 0; first < cols_; first += stretch) {
      if (stretch < cols_) read(first);
      f(first);
    }
  }
  // f(j, error + gradient there, whether j is one of the columns); all of a warp meet in f.
  template <typename F>
  MFAC_DEVICE void for_columns(int first, const F& f) const {
#pragma unroll
    for (int turn = 0; turn < kHeld; ++turn) {
      if (turn >= turns_) break;
      const int j = column(first, turn);
      f(j, held_[turn], j < cols_);
    }
  }

 private:
  static constexpr int kHeld = 64 / int(sizeof(V));

  MFAC_DEVICE int column(int first, int turn) const {
    return first + (int(threadIdx.x) / kWarp * turns_ + turn) * kWarp + int(threadIdx.x) % kWarp;
  }
  MFAC_DEVICE void read(int first) {
    V x[kHeld], y[kHeld];
#pragma unroll
    for (int turn = 0; turn < kHeld; ++turn) {
      const int j = column(first, turn);
      const bool exists = turn < turns_ && j < cols_;
      x[turn] = exists ? error_[j] : V(0);
      y[turn] = exists ? gradient_[j] : V(0);
    }
#pragma unroll
    for (int turn = 0; turn < kHeld; ++turn) held_[turn] = x[turn] + y[turn];
  }

  const V *error_, *gradient_;
  int cols_, turns_;
  V held_[kHeld];
};

// x <- its sums over the threads before this one; total <- its sums over all threads. Shared
// memory: an integer a warp and sum, free to be used again after the next barrier.
template <int threads, int count>
MFAC_DEVICE void block_prefix(int (&x)[count], int (&total)[count]) {
  static_assert(threads <= kWarp * kWarp);
  MFAC_SHARED(int, of_warp, [count][threads / kWarp]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int through[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    through[i] = x[i];
#pragma unroll
    for (int by = 1; by < kWarp; by *= 2) {
      const int before = __shfl_up_sync(kAllLanes, through[i], by);
      if (lane >= by) through[i] += before;
    }
    if (lane == kWarp - 1) of_warp[i][warp] = through[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int of_lane = lane < threads / kWarp ? of_warp[i][lane] : 0;
    x[i] = warp_sum_everywhere(lane < warp ? of_lane : 0) + through[i] - x[i];
    total[i] = warp_sum_everywhere(of_lane);
  }
}

// Adds the lanes' bins to a histogram. Lanes that agree with the first are counted at once, since
// often all do: in a vector of zeros, say.
MFAC_DEVICE void count_bins(int* histogram, int bin, bool counts) {
  const unsigned lanes = __ballot_sync(kAllLanes, counts);
  if (lanes == 0) return;
  const int lane = threadIdx.x % kWarp, leader = __ffs(int(lanes)) - 1;
  const int common = __shfl_sync(kAllLanes, bin, leader);
  const bool agrees = counts && bin == common;
  const unsigned agreeing = __ballot_sync(kAllLanes, agrees);
  if (lane == leader) atomicAdd(&histogram[common], __popc(agreeing));
  else if (counts && !agrees) atomicAdd(&histogram[bin], 1);
}

// Which keys are the largest: all keys with leading bits above `bin`, and the first `wanted` keys
// with leading bits equal to `bin`.
template <typename Key>
struct Selection {
  Key bin;
  int shift, wanted;
  MFAC_DEVICE bool is_above(Key key) const { return (key >> shift) > bin; }
  MFAC_DEVICE bool is_in_bin(Key key) const { return (key >> shift) == bin; }
};

// The `count` largest in magnitude of the columns, the first of equal ones: bins are divided, 11
// bits at a time, until one holds equal keys or nothing but what is wanted.
template <typename V>
MFAC_DEVICE auto select_largest(CarriedColumns<V>& columns, int cols, int count) {
  using Key = decltype(magnitude_key(V(0)));
  MFAC_SHARED(int, histogram, [kSelectBins]);
  MFAC_SHARED(int, found, [3]);
  constexpr int kBinsPerThread = kSelectBins / kSelectThreads;
  const int thread = threadIdx.x;
  Selection<Key> selection{0, 8 * int(sizeof(Key)) - 1, count};  // the sign bit is 0
  int in_bin = cols;
  while (selection.shift > 0 && in_bin > selection.wanted) {
    const int bits = selection.shift < kSelectBits ? selection.shift : kSelectBits, shift = selection.shift - bits;
    for (int i = thread; i < kSelectBins; i += kSelectThreads) histogram[i] = 0;
    __syncthreads();
    columns.for_stretches([&](int first) {
      columns.for_columns(first, [&](int, V x, bool exists) {
        const Key key = magnitude_key(x);
        count_bins(histogram, int(key >> shift) & ((1 << bits) - 1), exists && selection.is_in_bin(key));
      });
    });
    __syncthreads();

    // A thread owns two bins, the first thread the highest.
    const int highest = kSelectBins - 1 - thread * kBinsPerThread;
    int above[1] = {0}, all[1];
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) above[0] += histogram[highest - i];
    block_prefix<kSelectThreads>(above, all);
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      const int size = histogram[highest - i];
      if (above[0] < selection.wanted && selection.wanted <= above[0] + size) {
        found[0] = highest - i;
        found[1] = selection.wanted - above[0];
        found[2] = size;
      }
      above[0] += size;
    }
    __syncthreads();
    selection = {(selection.bin << bits) | Key(found[0]), shift, found[1]};
    in_bin = found[2];
  }
  return selection;
}

}  // namespace mfac::cuda
