// The vocabulary of CUDA C++ that the kernels use, for a plain C++ compiler (csrc/cuda/simt.h).
#pragma once

#include <cmath>
#include <map>
#include <set>
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
#define MFAC_LAUNCH(kernel, grid, block, stream, ...) ((void)(stream), ::simt::launch<kernel>(grid, block, __VA_ARGS__))

namespace simt {

// Every kernel that some launcher can launch, by its name with its template's arguments, and the
// integers that it was launched with: what the tests have to reach, and what they did.
using Launches = std::map<std::string, std::set<std::string>>;
inline Launches& launches() {
  static Launches all;
  return all;
}

template <auto kernel>
std::string name_of() {
  const std::string pretty = __PRETTY_FUNCTION__;  // "... [with auto kernel = NAME; ...]"
  const std::size_t begin = pretty.find("kernel = ") + 9;
  return pretty.substr(begin, pretty.find_first_of(";]", begin) - begin);
}

template <auto kernel>
struct Known {
  static inline const bool known = (launches()[name_of<kernel>()], true);
};

template <typename T>
void append_size(std::string& sizes, const T& argument) {
  if constexpr (std::is_integral_v<T>) sizes += (sizes.empty() ? "" : " ") + std::to_string(argument);
}

#if defined(MFAC_COUNT_BYTES)
void count_bytes(const std::string& kernel);  // of the launch that has ended (bytes.cpp)
#endif

template <auto kernel, typename... Arguments>
SIMT_UNSEEN int launch(dim3 grid, dim3 block, const Arguments&... arguments) {
  {
    Unseen unseen;
    (void)Known<kernel>::known;
    std::string sizes;
    (append_size(sizes, arguments), ...);
    launches()[name_of<kernel>()].insert(sizes);
  }
  Block::instance().launch(grid, block, [=] { kernel(arguments...); });
#if defined(MFAC_COUNT_BYTES)
  count_bytes(name_of<kernel>());
#endif
  return 0;
}

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

inline uint4 load_packet(const char* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(uint4) != 0) throw std::runtime_error("simt: a misaligned packet");
  uint4 packet;
  std::memcpy(&packet, p, sizeof(packet));
  return packet;
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
