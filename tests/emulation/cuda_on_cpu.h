// The vocabulary of CUDA C++ that the kernels use, for a plain C++ compiler (csrc/cuda/simt.h).
#pragma once

#include <cmath>
#include <type_traits>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) uint2 {
  unsigned x, y;
};

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::Block::instance().index)
#define blockDim (::simt::Block::instance().size)
#define gridDim (::simt::Block::instance().grid)

#define SIMT_PLACE \
  ::simt::Place { __FILE__, __LINE__ }
#define __syncthreads() ::simt::Block::instance().barrier(SIMT_PLACE)
#define __syncwarp() ::simt::Block::instance().warp_op(0xffffffffu, ::simt::current->lane, 0, true, SIMT_PLACE)
#define __shfl_sync(mask, value, lane) ::simt::shuffle(mask, value, unsigned(lane) % ::simt::kWarp, SIMT_PLACE)
#define __shfl_xor_sync(mask, value, bits) ::simt::shuffle(mask, value, ::simt::current->lane ^ (bits), SIMT_PLACE)
#define __shfl_down_sync(mask, value, by) ::simt::shuffle(mask, value, ::simt::below(by), SIMT_PLACE)
#define __shfl_up_sync(mask, value, by) ::simt::shuffle(mask, value, ::simt::above(by), SIMT_PLACE)
#define __ballot_sync(mask, vote) ::simt::ballot(mask, vote, SIMT_PLACE)

#define MFAC_SHARED(T, name, dims)  \
  static const char name##_key = 0; \
  using name##_array = T dims;      \
  name##_array& name = *static_cast<name##_array*>(::simt::Block::instance().shared(&name##_key, sizeof(name##_array)))
#define MFAC_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), ::simt::Block::instance().launch(grid, block, [=] { kernel(__VA_ARGS__); }), 0)

namespace simt {

inline unsigned below(unsigned by) { return current->lane + by < kWarp ? current->lane + by : current->lane; }
inline unsigned above(unsigned by) { return current->lane >= by ? current->lane - by : current->lane; }

template <typename T>
T shuffle(uint32_t mask, T value, unsigned source, Place place) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  Block::instance().warp_op(mask, source, bits, false, place);
  std::memcpy(&value, &current->received, sizeof(T));
  return value;
}

inline uint32_t ballot(uint32_t mask, bool vote, Place place) {
  Block::instance().warp_op(mask, current->lane, vote, false, place);
  return current->votes;
}

template <typename To, typename From>
To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

}  // namespace simt

inline unsigned __float_as_uint(float x) { return simt::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bits_as<long long>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// Four products of signed bytes, added to c.
inline int __dp4a(int a, int b, int c) {
  for (int shift = 0; shift < 32; shift += 8) c += int(int8_t(a >> shift)) * int(int8_t(b >> shift));
  return c;
}

template <typename T>
inline T atomicAdd(T* p, T x) {
  static_assert(std::is_integral_v<T>, "Sums of floats by atomics depend on the order of threads.");
  return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
