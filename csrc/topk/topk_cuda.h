// Launchers of the CUDA twins of topk_dot, topk_combine_ and topk_push_: pointers to device memory, a stream, the
// launch's error.
//
// None accesses memory outside of a tensor, whatever the offsets are. Where they break the layout's promise (below the
// columns of their block, ascending, none twice but for zeros) entries are left out or lost.
#pragma once

#include <algorithm>

#include "formats.h"
#include "topk/topk_layout.h"

namespace mfac::cuda {

constexpr int kTopKTileColumns = 1024;  // whose float64 sums four warps have in shared memory

// How the ops are cut up: by shapes alone, so that their last bits are the same on every GPU.
struct TopKShape {
  TopKLayout layout;

  int64_t tiles() const { return (layout.block_size + kTopKTileColumns - 1) / kTopKTileColumns; }  // of a block
  int64_t dot_scratch(int64_t k) const { return layout.blocks * k * layout.rank; }                 // float64
  int64_t combine_scratch() const { return layout.blocks * (tiles() - 1) * layout.rank; }          // uint16

  // Columns of the new row that one block looks at, so that at most about two thousand do.
  int64_t carry_chunk() const {
    constexpr int64_t kStep = 4096, kBlocks = 2048;
    return std::max<int64_t>(1, (layout.dim + kStep * kBlocks - 1) / (kStep * kBlocks)) * kStep;
  }
  int64_t carry_chunks() const { return std::max<int64_t>(1, (layout.dim + carry_chunk() - 1) / carry_chunk()); }
  int64_t push_scratch() const { return std::max(carry_chunks(), dot_scratch(1)); }  // float64
};

// out [k, m] <- vectors [k, d] Gᵀ, or NaN where `refused`, which may be null, says so.  scratch: dot_scratch(k)
template <typename T, typename V>
int topk_dot(const T* values, const uint16_t* offsets, const TopKShape& shape, const V* vectors, int64_t vector_stride,
             int64_t k, const int* refused, double* out, double* scratch, void* stream);

// out [k, d] <- alpha out + beta coefficients [k, m] G; where alpha is 0 out is not read.  scratch: combine_scratch()
template <typename T, typename V>
int topk_combine(const T* values, const uint16_t* offsets, const TopKShape& shape, const double* coefficients,
                 int64_t k, double alpha, double beta, V* out, int64_t out_stride, uint16_t* scratch, void* stream);

// error + gradient, [d], becomes row `row` as far as it is kept, and `error` the rest; products [m] of the row with
// every row. All NaN, and nothing written, where the sum cannot be stored: its largest magnitude exceeds `largest`.
// carried: [d]; scratch: push_scratch(); refused: one int
template <typename T, typename V>
int topk_push(T* values, uint16_t* offsets, const TopKShape& shape, V* error, int64_t row, const V* gradient,
              double largest, double* products, V* carried, double* scratch, int* refused, void* stream);

}  // namespace mfac::cuda
