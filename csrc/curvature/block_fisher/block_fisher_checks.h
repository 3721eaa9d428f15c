// What the operators of the block-diagonal Fisher ask of their arguments, on every device.
#pragma once

#include "common/adapter.h"
#include "curvature/block_fisher/block_layout.h"

namespace mfac {

inline Blocks check_blocks(const char* op, const Tensor& window, int64_t block_size) {
  check_rows(op, "window", window);
  STD_TORCH_CHECK(block_size >= 1, op, ": Parameter `block_size` should be >= 1. Found ", block_size, ".");
  return {window.size(0), window.size(1), std::min(block_size, std::max<int64_t>(1, window.size(1)))};
}

inline void check_factors(const char* op, const Tensor& factors, const Blocks& blocks) {
  check_dense_f64(op, "factors", factors);
  check_shape(op, "factors", factors, {blocks.count(), blocks.order(), blocks.order()});
}

inline void check_vectors(const char* op, const Tensor& vectors, const Blocks& blocks) {
  check_dense_f64(op, "vectors", vectors);
  STD_TORCH_CHECK(vectors.dim() == 2, op, ": Parameter `vectors` should be a matrix.", found(vectors));
  check_size(op, "vectors", vectors.size(1), blocks.dim);
}

}  // namespace mfac
