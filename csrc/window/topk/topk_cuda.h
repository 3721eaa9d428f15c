// Launchers of the CUDA twins of topk_dot, topk_combine_ and topk_push_: pointers to device memory,
// a stream, the launch's error.
//
// None accesses memory outside of a tensor, whatever offsets and boundaries are. Where these break
// the layout's promise (below the columns of their block, ascending, none twice but for zeros)
// entries are left out or lost.
#pragma once

#include <algorithm>

#include "common/formats.h"
#include "window/topk/topk_layout.h"
#include "window/window_combine/descent.h"

namespace mfac::cuda {

// Of 32 columns: which the new row keeps, a bit each, and how many it keeps before them in their
// block.
struct alignas(8) TopKWord {
  uint32_t kept, before;
};
constexpr int kTopKWordColumns = 32;

// How the ops are cut up: by shapes alone, so that their last bits are the same on every GPU.
struct TopKShape {
  TopKLayout layout;

  int64_t dot_scratch(int64_t k) const { return layout.blocks * k * layout.rank; }                 // float64
  int64_t combine_scratch() const { return layout.blocks * (layout.tiles() - 1) * layout.rank; }   // uint16
  int64_t words() const { return (layout.block_size + kTopKWordColumns - 1) / kTopKWordColumns; }  // of a block

  // Columns of the new row that one block looks at, so that at most about two thousand do.
  int64_t size_chunk() const {
    constexpr int64_t kStep = 4096, kBlocks = 2048;
    return std::max<int64_t>(1, (layout.dim + kStep * kBlocks - 1) / (kStep * kBlocks)) * kStep;
  }
  int64_t size_chunks() const { return std::max<int64_t>(1, (layout.dim + size_chunk() - 1) / size_chunk()); }

  // Of float64: sums, of squares and later of products; the new row's words; and whether it is
  // refused.
  int64_t push_sums() const { return std::max(size_chunks(), dot_scratch(1)); }
  int64_t push_scratch() const { return push_sums() + layout.blocks * words() + 1; }
};

// out [k, m] <- vectors [k, d] Gᵀ.  scratch: dot_scratch(k)
template <typename T, typename V>
int topk_dot(const T* values, const uint16_t* offsets, const TopKShape& shape, const V* vectors, int64_t vector_stride,
             int64_t k, double* out, double* scratch, void* stream);

// out [k, d] <- alpha out + beta coefficients [k, m] G; where alpha is 0 out is not read. Without
// boundaries, which may be null, they are found in scratch: combine_scratch()
template <typename T, typename V>
int topk_combine(const T* values, const uint16_t* offsets, const TopKShape& shape, const double* coefficients,
                 int64_t k, double alpha, double beta, V* out, int64_t out_stride, const uint16_t* boundaries,
                 uint16_t* scratch, void* stream);

// Weights move along descent.beta·coefficients [m] G; with an average, the weights that row
// `newest` carries move without the average. boundaries, scratch: as above
template <typename T, typename V>
int topk_descend(const T* values, const uint16_t* offsets, const TopKShape& shape, const double* coefficients,
                 const DescentPieces<V>& descent, int64_t newest, const uint16_t* boundaries, uint16_t* scratch,
                 void* stream);

// error + gradient, [d], becomes row `row` as far as it is kept, and `error` the rest; products [m]
// of the row with every row; its boundaries, unless null. All NaN, and nothing written, where the
// sum cannot be stored: its largest magnitude exceeds `largest`.  scratch: push_scratch()
template <typename T, typename V>
int topk_push(T* values, uint16_t* offsets, const TopKShape& shape, V* error, int64_t row, const V* gradient,
              double largest, uint16_t* boundaries, double* products, double* scratch, void* stream);

}  // namespace mfac::cuda
