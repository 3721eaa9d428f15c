// Launchers of the CUDA twins of window_dot and squared_norms: pointers to device memory, a stream,
// the launch's error.
#pragma once

#include <algorithm>

#include "common/formats.h"

namespace mfac::cuda {

constexpr int kDotThreads = 256;
constexpr int kMostDotVectors = 4;  // that share one pass over the window

// How a product of m rows of d columns with vectors is cut up: by the shape alone, so that its last
// bit is the same on every GPU.
struct DotShape {
  int64_t m, d, k;
  int64_t rows() const { return k == 1 ? 8 : 4; }                   // of a block
  int64_t vectors() const { return k == 1 ? 1 : kMostDotVectors; }  // of a block
  int64_t row_groups() const { return (m + rows() - 1) / rows(); }
  int64_t vector_groups() const { return (k + vectors() - 1) / vectors(); }
  // Columns of a block, whole tiles of scales: so many that about two thousand blocks fill a GPU
  // whatever m is.
  int64_t chunk() const {
    constexpr int64_t kBlocks = 2048;
    const int64_t chunks = std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, row_groups()));
    const int64_t tiles = (d + kScaleColumns - 1) / kScaleColumns;
    return std::max<int64_t>(1, (tiles + chunks - 1) / chunks) * kScaleColumns;
  }
  int64_t chunks() const { return std::max<int64_t>(1, (d + chunk() - 1) / chunk()); }
  int64_t scratch() const { return chunks() * m * k; }  // float64
};

// out [k, m] <- vectors [k, d] Gᵀ.  scratch: DotShape{m, d, k}.scratch() float64; scales null but
// for int8
template <typename T, typename V>
int window_dot(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d, const V* vectors,
               int64_t vector_stride, int64_t k, double* out, double* scratch, void* stream);

// out [m] <- ‖g_r‖².  scratch: DotShape{m, d, 1}.scratch() float64
template <typename T>
int squared_norms(const T* window, int64_t stride, int64_t m, int64_t d, double* out, double* scratch, void* stream);

}  // namespace mfac::cuda
