// Elements of a window as they travel: sixteen bytes a load where rows are aligned, one element
// where they are not; and the conversions between the formats of a window and float.
#pragma once

#include <type_traits>

#include "common/formats.h"
#include "cuda/simt.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace mfac::cuda {

template <typename T>
constexpr int kPacket = kPacketBytes / sizeof(T);  // elements of a packet

// Whether rows that begin at `p` and lie `stride` elements apart can be read in packets.
template <typename T>
__host__ __device__ inline bool is_aligned(const T* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % kPacketBytes == 0 && stride % kPacket<T> == 0;
}

MFAC_DEVICE uint4 load_packet(const char* __restrict__ p) {
#if defined(__CUDACC__)
  return *reinterpret_cast<const uint4*>(p);
#else
  return simt::load_packet(p);  // g++ takes what one branch says of an address to hold in the other
#endif
}

// x <- p[0..width); for more than one entry p is the address of a packet, or of several in a row.
template <int width, typename T>
MFAC_DEVICE void load(const T* __restrict__ p, T (&x)[width]) {
  if constexpr (width == 1) {
    x[0] = *p;
  } else {
    static_assert(width * sizeof(T) % kPacketBytes == 0);
    constexpr int kPackets = width * sizeof(T) / kPacketBytes;
    uint4 packets[kPackets];
#pragma unroll
    for (int i = 0; i < kPackets; ++i) packets[i] = load_packet(reinterpret_cast<const char*>(p) + i * kPacketBytes);
    __builtin_memcpy(x, packets, sizeof(x));
  }
}

// The same for a vector beside a window, whose own packets may be cut otherwise: by packets where
// it is `packed` and enough entries are wanted.
template <int width, typename V>
MFAC_DEVICE void load_any(const V* __restrict__ p, bool packed, V (&x)[width]) {
  if constexpr (width * sizeof(V) % kPacketBytes == 0) {
    if (packed) return load<width>(p, x);
  }
#pragma unroll
  for (int e = 0; e < width; ++e) x[e] = p[e];
}

template <int width, typename T>
MFAC_DEVICE void store(T* __restrict__ p, const T (&x)[width]) {
  if constexpr (width == 1) {
    *p = x[0];
  } else if constexpr (width * sizeof(T) % kPacketBytes == 0) {
    constexpr int kPackets = width * sizeof(T) / kPacketBytes;
    uint4 packets[kPackets];
    __builtin_memcpy(packets, x, sizeof(x));
#pragma unroll
    for (int i = 0; i < kPackets; ++i) reinterpret_cast<uint4*>(p)[i] = packets[i];
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) p[i] = x[i];
  }
}

MFAC_DEVICE double widen(double x) { return x; }
MFAC_DEVICE float widen(float x) { return x; }
MFAC_DEVICE float widen(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
MFAC_DEVICE float widen(int8_t x) { return x; }
MFAC_DEVICE float widen(f16 x) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(x.bits));
#else
  _Float16 half;
  __builtin_memcpy(&half, &x, sizeof(half));
  return half;
#endif
}

// Round to nearest, ties to even. Doubles reach the 16-bit formats by way of float, as on the CPU.
MFAC_DEVICE void round_to(double x, double& y) { y = x; }
MFAC_DEVICE void round_to(float x, double& y) { y = x; }
MFAC_DEVICE void round_to(float x, float& y) { y = x; }
MFAC_DEVICE void round_to(double x, float& y) { y = float(x); }
MFAC_DEVICE void round_to(float x, bf16& y) {
  const unsigned bits = __float_as_uint(x);
  y.bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
MFAC_DEVICE void round_to(float x, f16& y) {
#if defined(__CUDACC__)
  y.bits = __half_as_ushort(__float2half_rn(x));
#else
  const _Float16 half = static_cast<_Float16>(x);
  __builtin_memcpy(&y, &half, sizeof(half));
#endif
}
MFAC_DEVICE void round_to(double x, bf16& y) { round_to(float(x), y); }
MFAC_DEVICE void round_to(double x, f16& y) { round_to(float(x), y); }

}  // namespace mfac::cuda
