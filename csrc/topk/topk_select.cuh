// CUDA kernels of topk_push_: what is carried, whether it can be stored, and the entries of it that are kept.
#pragma once

#include <type_traits>

#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "topk/topk_cuda.h"

namespace mfac::cuda {

constexpr int kCarryThreads = 256;

// carried <- error + gradient; partial[chunk] <- the sum of its squares there, which is not finite either where a
// magnitude exceeds `largest`.
// A block owns a chunk of columns; a thread every 256th packet of it; shared memory: a sum for each warp.
template <typename V, int width>
MFAC_KERNEL(kCarryThreads)
topk_carry_kernel(const V* __restrict__ error, const V* __restrict__ gradient, int64_t d, int64_t chunk, double largest,
                  V* __restrict__ carried, double* __restrict__ partial) {
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < d ? begin + chunk : d;
  const int64_t packed_end = begin + (end - begin) / width * width;
  double squares = 0;
  const auto add = [&](int64_t column, auto packet) {
    constexpr int kWidth = decltype(packet)::value;
    V x[kWidth], y[kWidth];
    load<kWidth>(error + column, x);
    load<kWidth>(gradient + column, y);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      x[e] += y[e];
      const double size = fabs(double(x[e]));
      squares += size > largest ? double(INFINITY) : size * size;
    }
    store<kWidth>(carried + column, x);
  };
#pragma unroll 4
  for (int64_t j = begin + int64_t(threadIdx.x) * width; j < packed_end; j += kCarryThreads * width)
    add(j, std::integral_constant<int, width>());
  if (packed_end + threadIdx.x < end) add(packed_end + threadIdx.x, std::integral_constant<int, 1>());

  const double total = block_sum<kCarryThreads>(squares);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// refused <- whether Σ_p partial[p] is not finite
// One block; a thread every 256th part; shared memory: a sum for each warp.
template <int threads>
MFAC_KERNEL(threads)
topk_refuse_kernel(const double* __restrict__ partial, int64_t parts, int* __restrict__ refused) {
  double sum = 0;
  for (int64_t p = threadIdx.x; p < parts; p += threads) sum += partial[p];
  const double total = block_sum<threads>(sum);
  if (threadIdx.x == 0) *refused = !(total < INFINITY);
}

constexpr int kSelectThreads = 1024;
constexpr int kSelectBits = 11;  // of a key at a time: a float's exponent and the bits that tell its neighbours apart
constexpr int kSelectBins = 1 << kSelectBits;

// The bits of |x|, which order as |x| does.
MFAC_DEVICE unsigned magnitude_key(float x) { return __float_as_uint(x) & 0x7fffffffu; }
MFAC_DEVICE uint64_t magnitude_key(double x) { return uint64_t(__double_as_longlong(x)) & 0x7fffffffffffffffu; }

// f(j, v[j], whether j < end) for columns from `begin` on, every `step`th; j is out of bounds for some lanes, so that
// all of a warp may meet in f.
template <typename V, typename F>
MFAC_DEVICE void for_columns(const V* v, int begin, int end, int step, int own, const F& f) {
  constexpr int kAhead = 4;  // f may write to v[j], before which no later element could be read
  for (int base = begin; base < end; base += kAhead * step) {
    V x[kAhead];
#pragma unroll
    for (int e = 0; e < kAhead; ++e) {
      const int j = base + e * step + own;
      x[e] = j < end ? v[j] : V(0);
    }
#pragma unroll
    for (int e = 0; e < kAhead; ++e) f(base + e * step + own, x[e], base + e * step + own < end);
  }
}

// Sums of `count` integers over the threads before this one. Shared memory: an integer a warp and sum, free to be used
// again after the next barrier.
template <int threads, int count>
MFAC_DEVICE void block_prefix(int (&x)[count]) {
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
  for (int i = 0; i < count; ++i) x[i] = warp_sum_everywhere(lane < warp ? of_warp[i][lane] : 0) + through[i] - x[i];
}

// Adds the lanes' bins to a histogram. Lanes that agree with the first are counted at once, since often all do: in a
// vector of zeros, say.
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

// Which keys are the largest: those whose leading bits exceed `bin`, and the first `wanted` of those where they are
// `bin`.
template <typename Key>
struct Selection {
  Key bin;
  int shift, wanted;
  MFAC_DEVICE bool is_above(Key key) const { return (key >> shift) > bin; }
  MFAC_DEVICE bool is_in_bin(Key key) const { return (key >> shift) == bin; }
};

// The `count` largest of |v[0..cols)|, the first of equal ones: bins are divided, 11 bits at a time, until one holds
// equal keys or nothing but what is wanted.
template <typename V>
MFAC_DEVICE auto select_largest(const V* v, int cols, int count) {
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
    for_columns(v, 0, cols, kSelectThreads, thread, [&](int, V x, bool exists) {
      const Key key = magnitude_key(x);
      count_bins(histogram, int(key >> shift) & ((1 << bits) - 1), exists && selection.is_in_bin(key));
    });
    __syncthreads();

    // A thread owns two bins, the first thread the highest.
    const int highest = kSelectBins - 1 - thread * kBinsPerThread;
    int above[1] = {0};
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) above[0] += histogram[highest - i];
    block_prefix<kSelectThreads>(above);
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

// Where nothing is refused: row `row` of values and offsets <- the largest entries of `carried`, rounded and in
// ascending order; error <- what this leaves; carried <- the row as a dense vector.
// A block owns a block of columns; a warp a 32nd of them, a thread every 32nd of these, and for the histograms every
// 1024th; shared memory: a histogram of 8 KiB and two sums for each warp.
template <typename T, typename V>
MFAC_KERNEL(kSelectThreads, 1)
topk_select_kernel(T* __restrict__ values, uint16_t* __restrict__ offsets, TopKLayout layout, int64_t row,
                   const int* __restrict__ refused, V* carried, V* error) {
  constexpr int kWarps = kSelectThreads / kWarp;
  if (*refused) return;
  const int64_t b = blockIdx.x;
  const int cols = int(layout.cols(b)), count = int(layout.count(b)), kept = int(layout.kept);
  carried += layout.begin(b);
  error += layout.begin(b);
  values += layout.entry(row, b);
  offsets += layout.entry(row, b);
  const auto selection = select_largest(carried, cols, count);

  const int lane = threadIdx.x % kWarp, width = int(ceil_div(cols, kWarps));
  const int begin = threadIdx.x / kWarp * width, end = begin + width < cols ? begin + width : cols;
  int before[2] = {0, 0};  // entries above the bin and in it, of earlier columns
  for_columns(carried, begin, end, kWarp, lane, [&](int, V x, bool exists) {
    before[0] += exists && selection.is_above(magnitude_key(x));
    before[1] += exists && selection.is_in_bin(magnitude_key(x));
  });
  block_prefix<kSelectThreads>(before);
  int above = __shfl_sync(kAllLanes, before[0], 0), in_bin = __shfl_sync(kAllLanes, before[1], 0);

  for_columns(carried, begin, end, kWarp, lane, [&](int j, V x, bool exists) {
    const bool is_above = exists && selection.is_above(magnitude_key(x));
    const bool is_in_bin = exists && selection.is_in_bin(magnitude_key(x));
    const unsigned lanes_above = __ballot_sync(kAllLanes, is_above), lanes_in_bin = __ballot_sync(kAllLanes, is_in_bin);
    const unsigned earlier = (1u << lane) - 1;
    const int in_bin_before = in_bin + __popc(lanes_in_bin & earlier);
    V rounded = 0;
    if (is_above || (is_in_bin && in_bin_before < selection.wanted)) {
      const int p =
          above + __popc(lanes_above & earlier) + (in_bin_before < selection.wanted ? in_bin_before : selection.wanted);
      T value;
      round_to(x, value);
      values[p] = value;
      offsets[p] = uint16_t(j);
      rounded = V(widen(value));
    }
    if (exists) {
      error[j] = x - rounded;
      carried[j] = rounded;
    }
    above += __popc(lanes_above);
    in_bin += __popc(lanes_in_bin);
  });
  for (int p = count + int(threadIdx.x); p < kept; p += kSelectThreads) {
    values[p] = T{};
    offsets[p] = 0;
  }
}

}  // namespace mfac::cuda
