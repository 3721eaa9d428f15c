// The bound on the rounding errors of whitened_norms, which every twin computes along with
// s = ‖U_:j‖², U = L⁻¹G.
//
// With unit roundoff u an entry of U is a sum that is off by at most
//   γ_i Σ_k |L⁻¹_ik g_kj| <= γ_i ‖L⁻¹_i:‖ ‖g_j‖, γ_i = (the longest chain of roundings) u.
// The weight w_i = γ_i ‖L⁻¹_i:‖ is known beforehand, and s is off by at most
//   2 ‖g_j‖ Σ_i w_i |U_ij| + ‖g_j‖² Σ_i w_i² + m u s.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/formats.h"

#if defined(__CUDACC__)
#define MFAC_ON_BOTH __host__ __device__
#else
#define MFAC_ON_BOTH
#endif

namespace mfac {

// Of arithmetic in C.
template <typename C>
constexpr double kRoundoff = std::is_same_v<C, float> ? 0x1p-24 : 0x1p-53;
template <typename C>
constexpr double kSmallest = std::is_same_v<C, float> ? 0x1p-126 : 0x1p-1022;  // a product below it may vanish

// w_i, from Σ_k (L⁻¹_ik)²: the rounding of L⁻¹_ik to C, a chain of products, and a chain of sums of
// kSingleDepth of them.
template <typename C>
MFAC_ON_BOTH inline double error_weight(int64_t i, int64_t m, double squares) {
  const int64_t depth = i + 1, sums = (depth + kSingleDepth - 1) / kSingleDepth;
  const int64_t roundings = 1 + (depth < kSingleDepth ? depth : kSingleDepth) + sums;
  return double(roundings) * kRoundoff<C> * std::sqrt(squares + double(m) * kSmallest<double>);
}

// Weights are kept in units of the largest, in which none that matters is too small for C.
MFAC_ON_BOTH inline double weight_unit(double largest) {
  constexpr double kLeast = 0x1p-1000;
  return largest < kLeast ? kLeast : largest;
}

// The bound for a column, from Σ_k g_kj², s, and Σ_i w_i |U_ij| in units of `unit`.
template <typename C>
MFAC_ON_BOTH inline double error_bound(int64_t m, double squares, double s, double weighted, double unit,
                                       double squared_weights) {
  const double m_roundoffs = double(m) * kRoundoff<C>, slack = 1 + 4 * m_roundoffs;  // of the bound's own sums
  const double vanishing = double(m) * kSmallest<C>, square = slack * (squares + vanishing);
  return slack * (2 * std::sqrt(square) * unit * weighted + square * squared_weights + m_roundoffs * s) + vanishing;
}

}  // namespace mfac
